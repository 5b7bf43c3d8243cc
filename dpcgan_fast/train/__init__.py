"""Training: settings, the budget plan, the loop of private steps, checkpoints."""

from dpcgan_fast.train.autoencoder import train_autoencoder as train_autoencoder
from dpcgan_fast.train.gan import train_gan as train_gan
from dpcgan_fast.train.settings import TrainSettings as TrainSettings
from dpcgan_fast.train.settings import default_settings as default_settings
