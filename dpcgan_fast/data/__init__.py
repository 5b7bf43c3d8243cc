"""Schema, readers and writers, encoding of records, units of privacy, and data sets."""
