"""The engine for training loops that were written for another library; each module stands alone."""
