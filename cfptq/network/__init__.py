"""What a model is to cfptq: captured, folded, named; written to ONNX; and predictors behind one protocol."""

from cfptq.network.capture import capture
from cfptq.network.export import INPUT, OUTPUT, OnnxLayer, find_layer_nodes, rename_tensors, to_onnx_model
from cfptq.network.factory import load_factory
from cfptq.network.graph import Layer, Network
from cfptq.network.head import Head, as_head, class_logits, decisions, infer_head, target_margin
from cfptq.network.onnx_graph import OnnxModule
from cfptq.network.predictor import Predictor, as_predictor
from cfptq.network.state import undisturbed

__all__ = [
    "INPUT",
    "OUTPUT",
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
    "decisions",
    "find_layer_nodes",
    "infer_head",
    "load_factory",
    "rename_tensors",
    "target_margin",
    "to_onnx_model",
    "undisturbed",
]
