"""Reading of fitted scikit-learn classifiers as PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from cfptq.errors import ModelError

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid, "identity": nn.Identity}


def is_scikit_learn_model(model: Any) -> bool:
    """Return whether ``model`` is a classifier or a pipeline of scikit-learn, without importing it."""
    return not isinstance(model, nn.Module) and hasattr(model, "predict_proba") and hasattr(model, "get_params")


def split_pipeline(model: Any) -> tuple[Any | None, Any]:
    """Return the preprocessing of a fitted model, None where it has none, and its classifier.

    Raises:
        ModelError: the pipeline does not end in a classifier, or it is not fitted.
    """
    steps = getattr(model, "steps", None)
    preprocessing, classifier = (None, model) if steps is None else (model[:-1] if len(steps) > 1 else None, steps[-1][1])
    if not hasattr(classifier, "classes_"):
        raise ModelError(f"The pipeline must end in a fitted classifier, got {type(classifier).__name__} without classes. Call fit first.")
    return preprocessing, classifier


def read_classifier(classifier: Any) -> nn.Module:
    """Return a module that puts out the logits of a fitted ``MLPClassifier`` or ``LogisticRegression``.

    Two classes have one logit, that of the second class.

    Raises:
        ModelError: the classifier is of another kind, or it decides several labels at once.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    if isinstance(classifier, MLPClassifier):
        count = len(classifier.classes_)
        if (
            isinstance(classifier.classes_, list)
            or classifier.out_activation_ not in ("logistic", "softmax")
            or (classifier.out_activation_ == "logistic" and count != 2)
        ):
            raise ModelError("MLPClassifier must choose one class among several, and this one decides several labels. Fit one label.")
        layers: list[nn.Module] = []
        for place, (weight, bias) in enumerate(zip(classifier.coefs_, classifier.intercepts_, strict=True)):
            layers.append(_build_linear(weight.T, bias))
            if place < len(classifier.coefs_) - 1:
                layers.append(_ACTIVATIONS[classifier.activation]())
        return nn.Sequential(*layers).eval()
    if isinstance(classifier, LogisticRegression):
        count = len(classifier.classes_)
        if count > 2 and getattr(classifier, "multi_class", "deprecated") == "ovr":
            raise ModelError(
                "LogisticRegression must be multinomial for several classes, got one against the rest. Fit it without multi_class."
            )
        return nn.Sequential(_build_linear(classifier.coef_, classifier.intercept_)).eval()
    raise ModelError(
        f"A scikit-learn model must end in MLPClassifier or LogisticRegression, got {type(classifier).__name__}. "
        "Quantize a network, or audit the model as a function."
    )


def _build_linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight, dtype=np.float32)))
        layer.bias.copy_(torch.from_numpy(np.broadcast_to(np.asarray(bias, dtype=np.float32), (weight.shape[0],)).copy()))
    return layer
