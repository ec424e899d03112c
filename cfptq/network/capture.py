"""Capture of a trained ``torch.nn.Module`` as a ``cfptq.network.Network`` by ``torch.export``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from cfptq.errors import DataError, ModelError
from cfptq.network.batch_axis import put_rows_first
from cfptq.network.batch_norm import fold_batch_norms
from cfptq.network.convolution import unify_convolutions
from cfptq.network.graph import Network
from cfptq.network.layers import find_layers, get_parameter_nodes
from cfptq.network.linear_forms import unify_linear_layers
from cfptq.network.normalize import fold_constants, has_mutation, normalize_graph, rename_nodes
from cfptq.network.quiet import quiet_exporters
from cfptq.network.state import check_initialized, preserved_state
from cfptq.network.wrappers import check_inputs, describe_other_model, takes_any_number, unwrap

#: Largest difference between network and model, as a share of the largest output (or of 1). A larger one is an error.
RELATIVE_TOLERANCE = 1e-4


def capture(model: nn.Module, example: Tensor) -> Network:
    """Export ``model`` in evaluation mode with a dynamic batch, fold BatchNorm, and find the quantizable layers.

    Modes, parameters, gradients, buffers and device of the model and the random state are not changed. The network has its own copy
    of the parameters, on the CPU.

    Args:
        model: takes one float32 tensor (batch first) and returns one float32 tensor. A compiled or data-parallel module is unwrapped.
        example: a few rows, ``(N, ...)`` float32, N ≥ 1. They fix the shape of a row, and the outputs are compared on them.

    Raises:
        DataError: the example is not a finite float32 tensor with a batch dimension.
        ModelError: the model cannot be exported, takes or returns something else, is not float32, changes its own buffers, draws
            random numbers, or has no quantizable layer.
    """
    model = unwrap(model)
    device = _check_model(model)
    rows = _check_example(example).to(device)
    with preserved_state(model), quiet_exporters():
        outputs = [_run_model(model, rows)]
        graph = normalize_graph(_export(model, rows))
        outputs.append(_run_model(model, rows[:1]))
    unify_convolutions(graph)
    unify_linear_layers(graph)
    fold_constants(graph, get_parameter_nodes)
    fold_batch_norms(graph)
    put_rows_first(graph, rows.cpu())
    graph = rename_nodes(graph)
    layers, skipped = find_layers(graph)
    network = Network(_finalize(graph), layers, skipped, tuple(rows.shape[1:]))
    for output in outputs:
        _check_equivalence(network, rows[: len(output)].cpu(), output)
    return network


def _check_model(model: nn.Module) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ModelError(f"The model must be a torch.nn.Module, got {type(model).__name__}. {describe_other_model(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("The model must not be a ScriptModule. Give the nn.Module that was scripted or traced.")
    scripted = next((name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if scripted:
        raise ModelError(f"{scripted!r} must not be a ScriptModule. Give the model with the nn.Module that was scripted or traced.")
    check_initialized(model)
    check_inputs(model)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(f"{name!r} must be float32, got {tensor.dtype}. Call model.float() first.")
        if tensor.is_meta:
            raise ModelError(f"{name!r} is on the meta device and holds no values. Load the model's state first.")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name!r} must be finite, but holds NaN or infinite values. Load a state from before training diverged.")
    devices = {tensor.device for _, tensor in tensors}
    if len(devices) > 1:
        raise ModelError(f"The model must be on one device, got {', '.join(sorted(map(str, devices)))}. Move it to one device.")
    return devices.pop() if devices else torch.device("cpu")


def _check_example(example: Tensor) -> Tensor:
    if not isinstance(example, Tensor):
        raise DataError(f"The example must be one tensor, batch first, got {type(example).__name__}. Wrap a model of several inputs.")
    if example.dtype != torch.float32:
        raise DataError(f"The example must be float32, got {example.dtype}. Call .float() on it.")
    if example.ndim < 2 or example.shape[0] == 0:
        raise DataError(f"The example must hold at least one row, batch first, got shape {tuple(example.shape)}.")
    if not torch.isfinite(example).all():
        raise DataError("The example must be finite, but holds NaN or infinite values. Give rows that the model is meant for.")
    # torch.export treats a batch of one as a constant.
    return example.detach() if example.shape[0] > 1 else example.detach().repeat(2, *[1] * (example.ndim - 1))


def _run_model(model: nn.Module, rows: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            output = model(rows)
    except Exception as error:
        raise ModelError(
            f"The model fails on a float32 tensor of shape {tuple(rows.shape)}: {_first_line(error)}. Give rows of the shape and type that "
            "its forward takes, and convert types within the forward."
        ) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"The model must return one tensor, got {type(output).__name__}. Wrap it in a module whose forward returns only the logits."
        )
    if output.ndim == 0 or output.shape[0] != rows.shape[0]:
        raise ModelError(
            f"The model must return one output per row, got shape {tuple(output.shape)} for {rows.shape[0]} rows. Keep the batch as the "
            "first dimension of what its forward returns."
        )
    if output.dtype != torch.float32:
        raise ModelError(f"The model must return float32 logits or probabilities, got {output.dtype}. {_advise_on_type(output.dtype)}")
    if not torch.isfinite(output).all():
        raise ModelError(
            "The model returns NaN or infinite values for the example. Check its weights, the scale of the rows, and logarithms and "
            "divisions in its forward."
        )
    return output.cpu()


def _advise_on_type(dtype: torch.dtype) -> str:
    """Return the sentence that says how a forward returns float32."""
    if dtype.is_floating_point:
        return "Its parameters are float32, so that its forward converts them. End the forward with .float()."
    return "Return the scores from which the classes are computed, before argmax or a comparison."


def _export(model: nn.Module, rows: Tensor) -> fx.GraphModule:
    try:
        batch = torch.export.Dim("batch", min=1)
        axes: Any = ({0: batch},)
        program = torch.export.export(model, (rows,), dynamic_shapes=(axes,) if takes_any_number(model) else axes, strict=False)
        exported = _unlift(program)
        if has_mutation(exported):
            program = program.run_decompositions({})
            exported = _unlift(program)
    except Exception as error:
        if "Constraints violated" in str(error):
            raise ModelError(
                "The model's forward must take any number of rows. "
                "Write x.shape[0] or -1 instead of a constant, and do not branch on the number of rows."
            ) from error
        raise ModelError(
            f"torch.export cannot read the model: {_first_line(error)}. Its forward must take one tensor with any number of rows. "
            "Write branches on values with torch.where or torch.cond."
        ) from error
    changed = list(program.graph_signature.buffers_to_mutate.values())
    if changed:
        raise ModelError(f"The model's forward must not change its own buffer {changed[0]!r}. Make it a pure function in evaluation mode.")
    return exported


def _unlift(program: torch.export.ExportedProgram) -> fx.GraphModule:
    # Newer releases of torch guard the inputs of an exported module unless told otherwise.
    unguarded = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module = program.module(**unguarded)
    assert isinstance(module, fx.GraphModule)
    return module


def _finalize(graph: fx.GraphModule) -> fx.GraphModule:
    """Copy the graph with the attributes that it uses and without the exporter's metadata, whose fake tensors cannot be copied."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    finished = fx.GraphModule(graph, graph.graph, class_name="Network")
    for module in finished.modules():
        if isinstance(module, fx.GraphModule):
            module.meta.clear()
            for node in module.graph.nodes:
                node.meta.clear()
    return finished.eval()


def _check_equivalence(network: Network, rows: Tensor, expected: Tensor) -> None:
    difference = float((network(rows) - expected).abs().max())
    if not difference <= RELATIVE_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"The exported graph differs from the model by {difference:.3g} on {len(rows)} rows of the example. "
            "The model's output must not depend on the batch size or on state outside the module."
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip()] or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
