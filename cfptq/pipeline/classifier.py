"""A quantized model as a scikit-learn classifier, which runs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array

from cfptq.errors import ConfigurationError, DataError
from cfptq.network import DecisionRule
from cfptq.network.onnx.file import OnnxFile
from cfptq.pipeline.preprocessing import encode_with


class QuantizedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier whose scores come from a quantized ONNX model.

    It is fitted already, so that ``fit`` changes nothing. It can be pickled, and opens its session anew in each process.

    Attributes:
        classes_: the classes, in the order of the probabilities.
        n_features_in_: number of columns of the rows that it takes.
        feature_names_in_: names of the raw columns, where the preprocessing knows them.

    Args:
        model: the ONNX model, serialized.
        preprocessing: a fitted encoder that turns raw rows into the model's columns; None takes the columns themselves.
        decision: head of the model's output and decision threshold.
        classes: the classes.
        width: number of the model's columns.
    """

    def __init__(self, model: bytes, preprocessing: Any, decision: DecisionRule, classes: Sequence[Any], width: int) -> None:
        self.model = model
        self.preprocessing = preprocessing
        self.decision = decision
        self.classes = classes
        self.width = width

    @property
    def classes_(self) -> npt.NDArray[Any]:
        return np.asarray(self.classes)

    @property
    def n_features_in_(self) -> int:
        return self.width if self.preprocessing is None else int(self.preprocessing.n_features_in_)

    @property
    def feature_names_in_(self) -> npt.NDArray[Any]:
        names: npt.NDArray[Any] = self.preprocessing.feature_names_in_
        return names

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_clone__(self) -> QuantizedClassifier:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def fit(self, X: Any, y: Any = None, **_: Any) -> QuantizedClassifier:
        """Return the classifier as it is. It was fitted before it was quantized."""
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probability of each class (N, C) for rows (N, ...)."""
        logits = DecisionRule(self.decision.head).class_logits(self._run(X)).double()
        shares: npt.NDArray[np.float64] = logits.softmax(dim=1).numpy()
        return shares

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the margin of the second class over the first (N,) after the decision threshold, or the logit of each class (N, C)."""
        logits = self.decision.class_logits(self._run(X)).double()
        values = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits
        return np.asarray(values.numpy())

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the class that is decided for each row (N,)."""
        chosen: npt.NDArray[Any] = self.classes_[self.decision.decide(self._run(X)).numpy()]
        return chosen

    def _run(self, rows: Any) -> torch.Tensor:
        columns = check_array(rows, dtype=np.float32) if self.preprocessing is None else encode_with(self.preprocessing, rows)
        if columns.shape[1] != self.width:
            raise DataError(f"X has {columns.shape[1]} features, but {type(self).__name__} is expecting {self.width} features as input.")
        file = self.__dict__.get("_file")
        if file is None:
            file = self.__dict__["_file"] = OnnxFile(onnx.load_from_string(self.model))
        return file.run(torch.from_numpy(columns))


def build_classifier(
    model: onnx.ModelProto, preprocessing: Any, decision: DecisionRule, classes: Sequence[Any] | None
) -> QuantizedClassifier:
    """Build the classifier of a quantized model.

    Args:
        model: the model.
        preprocessing: a fitted encoder, or a pipeline whose predictor is ignored; None for columns.
        decision: head of the model's output and decision threshold.
        classes: the classes; None gives indices.

    Raises:
        ConfigurationError: the number of classes differs from the model's.
    """
    width = int(model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    file = OnnxFile(model)
    count = decision.class_logits(file.run(torch.zeros(2, width))).shape[1]
    listed = list(range(count)) if classes is None else list(classes)
    if len(listed) != count:
        raise ConfigurationError(f"classes must name the model's {count} classes, got {len(listed)}.")
    return QuantizedClassifier(model.SerializeToString(), preprocessing, decision, listed, width)
