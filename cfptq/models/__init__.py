"""Reference classifiers of the benchmarks and their training."""

from cfptq.models.backbones import MLP, LogisticRegression
from cfptq.models.fitting import TrainingLog, TrainingSettings, train
from cfptq.models.images import Autoencoder, ResNet18, SmallCNN

__all__ = [
    "MLP",
    "Autoencoder",
    "LogisticRegression",
    "ResNet18",
    "SmallCNN",
    "TrainingLog",
    "TrainingSettings",
    "train",
]
