"""A label output that decides otherwise than the scores is not passed over."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from graphs import FLOAT, INT64, drawn, graph, node, rows

from cfptq.errors import ModelWarning
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.labels import describe_other_labels
from cfptq.network.predictor import as_predictor

SCORES = [node("MatMul", "x W", "h"), node("Relu", "h", "k"), node("MatMul", "k V", "z"), node("Sigmoid", "z", "p")]


def labelled(threshold: float) -> onnx.ModelProto:
    """A file with one probability whose label is 1 above ``threshold``."""
    nodes = [*SCORES, node("Greater", "p t", "g"), node("Cast", "g", "label", to=INT64)]
    return graph(nodes, {"W": drawn(6, 8), "V": drawn(8, 1, seed=1), "t": np.float32([threshold])}, outputs={"label": INT64, "p": FLOAT})


def test_a_label_with_a_threshold_of_its_own_is_named_with_that_threshold() -> None:
    with pytest.warns(ModelWarning, match=r"labels .* are not the decisions .* with threshold=, about 0\.7"):
        as_predictor(labelled(0.7), example=rows(1000, 6))


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_labels_that_are_the_decisions_say_nothing(threshold: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        as_predictor(labelled(threshold), example=rows(), threshold=threshold)


def test_labels_of_several_classes_and_of_any_name_are_compared() -> None:
    nodes = [node("MatMul", "x W", "z"), node("Neg", "z", "n"), node("Gather", "z order", "m", axis=1)]
    logits = rows() @ torch.from_numpy(drawn(6, 3))
    for source, says in (("z", False), ("m", False), ("n", True)):  # another order of the classes is only another name of each
        model = graph(
            [*nodes, node("ArgMax", source, "label", axis=1, keepdims=0)],
            {"W": drawn(6, 3), "order": [2, 0, 1]},
            outputs={"label": INT64, "z": FLOAT},
        )
        assert bool(describe_other_labels(OnnxFile(model, output="z"), rows(), logits, None)) == says
