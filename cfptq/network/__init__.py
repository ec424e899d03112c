"""Models as graphs of ATen operations, their ONNX form, and predictors behind one protocol."""

from cfptq.network.capture import capture
from cfptq.network.cost import count_multiply_adds, count_multiply_adds_by_layer
from cfptq.network.graph import Layer, Network
from cfptq.network.head import DecisionRule, Head, as_head, class_logits, decide, infer_head, target_margin
from cfptq.network.loading import load_factory
from cfptq.network.onnx.export import INPUT, OUTPUT, OnnxLayer, find_layer_nodes, rename_tensors, to_onnx_model
from cfptq.network.onnx.module import OnnxModule
from cfptq.network.predictor import Predictor, as_predictor
from cfptq.network.state import preserved_state

__all__ = [
    "INPUT",
    "OUTPUT",
    "DecisionRule",
    "Head",
    "Layer",
    "Network",
    "OnnxLayer",
    "OnnxModule",
    "Predictor",
    "as_head",
    "as_predictor",
    "capture",
    "class_logits",
    "count_multiply_adds",
    "count_multiply_adds_by_layer",
    "decide",
    "find_layer_nodes",
    "infer_head",
    "load_factory",
    "preserved_state",
    "rename_tensors",
    "target_margin",
    "to_onnx_model",
]
