"""Reference classifiers of the benchmarks and their training."""

from cfptq.models.backbones import MLP, LogisticRegression
from cfptq.models.fitting import TrainingLog, TrainingSettings, train

__all__ = ["MLP", "LogisticRegression", "TrainingLog", "TrainingSettings", "train"]
