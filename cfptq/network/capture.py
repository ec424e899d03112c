"""From a trained ``torch.nn.Module`` to a :class:`~cfptq.network.Network`, by ``torch.export``."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, fx, nn

from cfptq.errors import DataError, ModelError
from cfptq.network.batch_norm import fold_batch_norms
from cfptq.network.convolution import plain_convolutions
from cfptq.network.graph import Network
from cfptq.network.layers import find_layers, weight_and_bias
from cfptq.network.normalize import fold_constants, mutates, normalized, renamed
from cfptq.network.quiet import quiet_exporters
from cfptq.network.state import preserved_state, refuse_uninitialized

#: Largest difference between the captured network and the model, as a share of the largest output (at least 1).
TOLERANCE = 1e-4


def capture(model: nn.Module, example: Tensor) -> Network:
    """Export ``model`` in evaluation mode with a dynamic batch, fold BatchNorm, and list the quantizable layers.

    The model is left as it was: modes, parameters, gradients, buffers, device and random state. The network has its own copy of
    the parameters, on the CPU.

    Args:
        model: takes one float32 tensor (batch first), returns one float tensor.
        example: a few rows, ``(N, ...)`` float32, N ≥ 1; only their shape and a check of the outputs depend on them.

    Raises:
        DataError: the example is no finite float32 tensor with a batch dimension.
        ModelError: the model cannot be exported, takes or returns something else, is not float32, changes its own buffers, draws
            random numbers, or has no layer that can be quantized.
    """
    device = _check_model(model)
    rows = _check_example(example).to(device)
    with preserved_state(model), quiet_exporters():
        outputs = [_outputs(model, rows)]
        graph = normalized(_exported(model, rows))
        outputs.append(_outputs(model, rows[:1]))
    plain_convolutions(graph)
    fold_constants(graph, weight_and_bias)
    fold_batch_norms(graph)
    graph = renamed(graph)
    layers, skipped = find_layers(graph)
    network = Network(_finished(graph), layers, skipped, tuple(rows.shape[1:]))
    for output in outputs:
        _compare(network, rows[: len(output)].cpu(), output)
    return network


def _check_model(model: nn.Module) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ModelError(f"capture takes a torch.nn.Module; it was given {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("torch.export cannot read a ScriptModule; give the nn.Module that was scripted or traced")
    refuse_uninitialized(model)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(f"{name!r} is {tensor.dtype}; cfptq quantizes float32 models: call model.float() first")
        if tensor.is_meta:
            raise ModelError(f"{name!r} is on the meta device and holds no values; load the model's state first")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name!r} holds NaN or infinite values; the model is not usable")
    devices = {tensor.device for _, tensor in tensors}
    if len(devices) > 1:
        raise ModelError(f"the model is spread over {', '.join(sorted(map(str, devices)))}; move it to one device")
    return devices.pop() if devices else torch.device("cpu")


def _check_example(example: Tensor) -> Tensor:
    if not isinstance(example, Tensor):
        raise DataError(f"the example must be one tensor, batch first, not {type(example).__name__}; wrap a model of several inputs")
    if example.dtype != torch.float32:
        raise DataError(f"the example is {example.dtype}; a float32 tensor is needed: call .float() on it")
    if example.ndim < 2 or example.shape[0] == 0:
        raise DataError(f"the example must hold at least one row, batch first; its shape is {tuple(example.shape)}")
    if not torch.isfinite(example).all():
        raise DataError("the example holds NaN or infinite values; give rows that the model is meant for")
    # torch.export takes a batch of one for a constant.
    return example.detach() if example.shape[0] > 1 else example.detach().repeat(2, *[1] * (example.ndim - 1))


def _outputs(model: nn.Module, rows: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            output = model(rows)
    except Exception as error:
        raise ModelError(f"the model fails on a float32 tensor of shape {tuple(rows.shape)}: {_first_line(error)}") from error
    if not isinstance(output, Tensor):
        raise ModelError(f"the model returns {type(output).__name__}; wrap it in a module whose forward returns just the logits tensor")
    if output.ndim == 0 or output.shape[0] != rows.shape[0]:
        raise ModelError(f"the model gives output of shape {tuple(output.shape)} for {rows.shape[0]} rows; it must give one output a row")
    if output.dtype != torch.float32:
        raise ModelError(f"the model returns {output.dtype}; it must return float32 logits or probabilities")
    if not torch.isfinite(output).all():
        raise ModelError("the model returns NaN or infinite values for the example")
    return output.cpu()


def _exported(model: nn.Module, rows: Tensor) -> fx.GraphModule:
    try:
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(model, (rows,), dynamic_shapes=({0: batch},), strict=False)
        exported = _module(program)
        if mutates(exported):
            program = program.run_decompositions({})
            exported = _module(program)
    except Exception as error:
        if "Constraints violated" in str(error):
            raise ModelError(
                "the model's forward is written for certain numbers of rows; let it take any number: "
                "x.shape[0] or -1 instead of a constant, no branch on it"
            ) from error
        raise ModelError(
            f"torch.export cannot read the model: {_first_line(error)}. Its forward must take one tensor with any number of rows; "
            "write branches on values with torch.where or torch.cond"
        ) from error
    changed = list(program.graph_signature.buffers_to_mutate.values())
    if changed:
        raise ModelError(f"the model's forward changes its own buffer {changed[0]!r}; make it a pure function in evaluation mode")
    return exported


def _module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    # Releases of torch that guard the inputs of an exported module can be told not to.
    unguarded = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module = program.module(**unguarded)
    assert isinstance(module, fx.GraphModule)
    return module


def _finished(graph: fx.GraphModule) -> fx.GraphModule:
    """A new module with just the attributes in use, without the exporter's metadata (its fake tensors cannot be copied)."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    finished = fx.GraphModule(graph, graph.graph, class_name="Network")
    for module in finished.modules():
        if isinstance(module, fx.GraphModule):
            module.meta.clear()
            for node in module.graph.nodes:
                node.meta.clear()
    return finished.eval()


def _compare(network: Network, rows: Tensor, expected: Tensor) -> None:
    difference = float((network(rows) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"the exported graph differs from the model by {difference:.3g} on {len(rows)} rows of the example; "
            "does its output depend on the batch's size or on state outside the module?"
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip()] or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
