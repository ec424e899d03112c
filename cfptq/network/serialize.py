"""Networks as bytes, with the graph as JSON and the parameters as safetensors.

Nothing is unpickled. ``network.json`` names operations and their arguments. It can call only ATen operations that compute tensors
from tensors, arithmetic on sizes, and ``torch.cond``.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx

from cfptq.errors import CfptqError, FileError, ModelError
from cfptq.network.attributes import set_tensor
from cfptq.network.graph import Layer, Network

SCHEMA = 1
GRAPH_FILE = "network.json"
TENSOR_FILE = "network.safetensors"
NETWORK_FILES = (GRAPH_FILE, TENSOR_FILE)

_SIZE_OPERATORS = ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "lt", "le", "gt", "ge", "eq", "ne", "and_", "or_")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _SIZE_OPERATORS},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")},
    **{f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc")},
    "higher_order.cond": torch.ops.higher_order.cond,
}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
#: Operations that are allowed although they take no tensor.
_FACTORIES = frozenset(("arange", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros"))
#: Private operations that are allowed.
_PRIVATE = frozenset(
    ("_adaptive_avg_pool2d", "_log_softmax", "_native_batch_norm_legit_no_training", "_softmax", "_to_copy", "_unsafe_view")
)
_CONSTANTS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def serialize_network(network: Network) -> dict[str, bytes]:
    """Return the contents of the network's two files, by file name (``NETWORK_FILES``).

    The same network gives the same bytes with the same versions of PyTorch and safetensors.

    Raises:
        ModelError: the graph calls a function that ``deserialize_network`` would refuse, such as a custom operation.
    """
    for name in _list_function_names(network.graph):
        _find_function(name)  # An operation that cannot be read back is an error now.
    tensors = _collect_tensors(network.graph)
    document = {"format": "cfptq-network", "schema": SCHEMA, "tensors_sha256": _digest_tensors(tensors), **_describe_network(network)}
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return {GRAPH_FILE: text.encode(), TENSOR_FILE: safetensors.torch.save(tensors)}


def deserialize_network(files: Mapping[str, bytes], where: str = "the saved network") -> Network:
    """Rebuild the network that ``serialize_network`` wrote.

    Args:
        files: contents of the two files, by file name.
        where: the folder that they come from, for error messages.

    Raises:
        FileError: a file is missing, cut off, altered, of another schema, or names an operation that is not allowed.
    """
    missing = [name for name in NETWORK_FILES if name not in files]
    if missing:
        raise FileError(f"{where} has no file {missing[0]}. Save the network again.")
    graph_file, tensor_file = f"{GRAPH_FILE} of {where}", f"{TENSOR_FILE} of {where}"
    try:
        tensors = safetensors.torch.load(files[TENSOR_FILE])
    except (ValueError, safetensors.SafetensorError) as error:
        raise FileError(f"{tensor_file} is not a valid safetensors file ({error}). Save the network again.") from error
    try:
        document = json.loads(files[GRAPH_FILE])
    except (ValueError, RecursionError) as error:
        raise FileError(f"{graph_file} is not valid JSON ({error}). Save the network again.") from error
    if not isinstance(document, dict) or document.get("format") != "cfptq-network":
        raise FileError(f"{graph_file} does not describe a network saved by cfptq.")
    if document.get("schema") != SCHEMA:
        raise FileError(f"{graph_file} has schema {document.get('schema')!r}. This release of cfptq reads schema {SCHEMA}.")
    if document.get("tensors_sha256") != _digest_tensors(tensors):
        raise FileError(f"{tensor_file} does not belong to its {GRAPH_FILE}. Save the network again.")
    try:
        graph = _build_graph(document["graph"], tensors, "")
        layers = tuple(Layer(**dict(entry, weight_shape=tuple(entry["weight_shape"]))) for entry in document["layers"])
        skipped = tuple((str(name), str(reason)) for name, reason in document["skipped"])
        network = Network(graph.eval(), layers, skipped, tuple(int(extent) for extent in document["input_shape"]))
        with torch.no_grad():
            output: object = network(torch.zeros(2, *network.input_shape))
        if not isinstance(output, Tensor) or len(output) != 2:
            raise FileError("Its graph does not return one output per row.")
    except CfptqError as error:
        raise FileError(f"{graph_file} is damaged. {error}") from error
    except Exception as error:
        raise FileError(f"{graph_file} is damaged ({type(error).__name__}: {error}). Save the network again.") from error
    return network


def digest(network: Network) -> str:
    """Compute the SHA-256 (hexadecimal) of the graph's structure, its layers and its parameters.

    A parameter contributes its name, shape, dtype and bytes.
    """
    text = json.dumps(_describe_network(network), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256((text + _digest_tensors(_collect_tensors(network.graph))).encode()).hexdigest()


def _describe_network(network: Network) -> dict[str, Any]:
    return {
        "input_shape": list(network.input_shape),
        "layers": [dict(vars(layer), weight_shape=list(layer.weight_shape)) for layer in network.layers],
        "skipped": [list(entry) for entry in network.skipped],
        "graph": _describe_graph(network.graph),
    }


def _collect_tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in sorted(graph.state_dict().items())}


def _digest_tensors(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return total.hexdigest()


def _describe_graph(graph: fx.GraphModule) -> dict[str, Any]:
    nodes = []
    for node in graph.graph.nodes:
        entry: dict[str, Any] = {"op": node.op, "name": node.name}
        if node.op in ("get_attr", "call_function"):
            entry["target"] = str(node.target) if node.op == "get_attr" else _format_function_name(node.target)
        if node.op != "placeholder":
            entry["args"] = [_encode(argument) for argument in node.args]
        if node.kwargs:
            entry["kwargs"] = {key: _encode(value) for key, value in sorted(node.kwargs.items())}
        nodes.append(entry)
    bodies = {name: _describe_graph(body) for name, body in graph.named_children() if isinstance(body, fx.GraphModule)}
    return {"nodes": nodes, "bodies": bodies} if bodies else {"nodes": nodes}


def _list_function_names(graph: fx.GraphModule) -> list[str]:
    graphs = [module for module in graph.modules() if isinstance(module, fx.GraphModule)]
    return [_format_function_name(node.target) for module in graphs for node in module.graph.nodes if node.op == "call_function"]


def _format_function_name(target: object) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return _NAMES.get(cast("Callable[..., Any]", target), f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}")


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encode(element) for element in value]}
    if isinstance(value, list):
        return [_encode(element) for element in value]
    if isinstance(value, slice):
        return {"slice": [_encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, of in _CONSTANTS.items():
        if isinstance(value, of):
            return {kind: str(value).removeprefix("torch.")}
    raise ModelError(f"The graph has an argument of type {type(value).__name__}, which cannot be saved.")


def _build_graph(document: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> fx.GraphModule:
    root = torch.nn.Module()
    for name, body in document.get("bodies", {}).items():
        root.add_module(name, _build_graph(body, tensors, f"{prefix}{name}."))
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in document["nodes"]:
        node = _build_node(graph, entry, nodes, root, tensors, prefix)
        if node.name != entry["name"]:
            raise FileError(f"Node names must be unique identifiers, got {entry['name']!r}.")
        nodes[node.name] = node
    graph.lint()
    return fx.GraphModule(root, graph, class_name="Branch" if prefix else "Network")


def _build_node(
    graph: fx.Graph, entry: dict[str, Any], nodes: dict[str, fx.Node], root: torch.nn.Module, tensors: dict[str, Tensor], prefix: str
) -> fx.Node:
    operation, name = entry["op"], entry["name"]
    args = tuple(_decode(argument, nodes) for argument in entry.get("args", []))
    kwargs = {key: _decode(value, nodes) for key, value in entry.get("kwargs", {}).items()}
    # Names become part of the generated source. Nothing must pass that could end a string or a statement.
    if not all(key.isidentifier() for key in (name, *kwargs)) or keyword.iskeyword(name):
        raise FileError(f"The name and keywords of node {name!r} must be identifiers.")
    if operation == "placeholder":
        return graph.create_node("placeholder", name, name=name)
    if operation == "output":
        return graph.create_node("output", "output", args, kwargs, name=name)
    if operation == "call_function":
        return graph.create_node("call_function", _find_function(entry["target"]), args, kwargs, name=name)
    if operation != "get_attr":
        raise FileError(f"Node {name!r} has the unknown operation {operation!r}.")
    target = entry["target"]
    if not target.isprintable() or '"' in target or "\\" in target:
        raise FileError(f"Node {name!r} reads an attribute with the invalid name {target!r}.")
    if prefix + target in tensors:
        set_tensor(root, target, tensors[prefix + target])
    elif not isinstance(root._modules.get(target), fx.GraphModule):
        raise FileError(f"{TENSOR_FILE} holds no tensor {prefix + target!r}.")
    return graph.create_node("get_attr", target, name=name)


def _find_function(name: str) -> Callable[..., Any]:
    """Return the function called ``name``.

    Raises:
        ModelError: a network must not call it.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    operation, _, overload = rest.partition(".")
    if namespace == "aten" and (not operation.startswith("_") or operation in _PRIVATE):
        found = getattr(getattr(torch.ops.aten, operation, None), overload, None)
        if isinstance(found, torch._ops.OpOverload) and _is_pure(found, operation):
            return cast(Callable[..., Any], found)
    raise ModelError(f"A network file must call only ATen operations without side effects, got {name!r}.")


def _is_pure(overload: torch._ops.OpOverload, operation: str) -> bool:
    schema = overload._schema
    takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return bool(schema.returns) and not schema.is_mutable and (takes_tensor or operation in _FACTORIES)


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(element, nodes) for element in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "tuple":
        return tuple(_decode(element, nodes) for element in content)
    if kind == "slice":
        return slice(*(_decode(part, nodes) for part in content))
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    constant = getattr(torch, content)
    if not isinstance(constant, _CONSTANTS[kind]):
        raise FileError(f"{content!r} is not a {kind}.")
    return constant
