"""Lowering of RNN, GRU and LSTM to torch's own recurrent layers, which stay in float.

ONNX holds one weight for all gates of a layer, as torch does, but in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cfptq.network.onnx.layers import make_identifier, require_tensor
from cfptq.network.onnx.steps import StepBuilder
from cfptq.network.onnx.values import Node, Value, conversion_error

#: Places of torch's gates among those of ONNX: a GRU's reset, update, new, and an LSTM's input, forget, cell, output.
GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
#: Activations that torch's layers compute. Tanh alone is an RNN's, which may also have Relu.
ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
#: A GRU that resets its state before the product (linear_before_reset=0), which torch does not have.
RESETS_FIRST = "GRU, reset first"
#: Attributes that change what a layer computes, with the values that torch's layers have.
PLAIN_ATTRIBUTES = {"clip": 0.0, "input_forget": 0, "layout": 0}


def lower_recurrent(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower RNN, GRU or LSTM to one step of torch, which writes all of the node's outputs.

    Raises:
        ModelError: the layer has something that torch's layer of this kind lacks.
    """
    x, weight, recurrence, bias, lengths, hidden, cell, peepholes = (*inputs, *[None] * 8)[:8]
    direction = node.get("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    activations = node.get("activations") or ACTIVATIONS[node.op] * directions
    rectifies = node.op == "RNN" and set(activations) == {"Relu"}
    problem = (
        "its rows have lengths of their own" if lengths is not None
        else "it has peepholes" if peepholes is not None
        else f"its activations are {', '.join(activations)}" if activations != ACTIVATIONS[node.op] * directions and not rectifies
        else next((f"{name} is {node.get(name)}" for name, usual in PLAIN_ATTRIBUTES.items() if node.get(name, usual) != usual), "")
    )  # fmt: skip
    if problem or x is None or weight is None or recurrence is None:
        raise conversion_error(node, problem or "it lacks an input or a weight")
    parts = [require_tensor(weight, node), require_tensor(recurrence, node)]
    size = parts[1].shape[-1]
    biases = torch.zeros(directions, 2 * len(GATES[node.op]) * size) if bias is None else require_tensor(bias, node)
    kind = "RELU" if rectifies else RESETS_FIRST if node.op == "GRU" and not node.get("linear_before_reset", 0) else node.op
    layer = make_identifier(node.name or weight.origin) or node.op.lower()
    arguments = [builder.apply_scale(x).slot]
    arguments += [builder.resolve_argument(None if state is None else builder.apply_scale(state)) for state in (hidden, cell)]
    for place in range(directions):
        side = "_reverse" if place else ""
        of_input, of_state = biases[place].chunk(2)
        held = {"weight_ih": parts[0][place], "weight_hh": parts[1][place], "bias_ih": of_input, "bias_hh": of_state}
        for name, tensor in held.items():
            ordered = torch.cat([tensor.chunk(len(GATES[node.op]))[gate] for gate in GATES[node.op]])
            if kind == RESETS_FIRST and name.endswith("_hh"):
                # Each part is used whole in every step, so that it stays in float as one weight.
                gates, new = ordered[: 2 * size].float(), ordered[2 * size :].float()
                arguments.append(builder.register_tensor(f"{layer}.{name}_gates{side}", gates, is_parameter=True))
                arguments.append(builder.register_tensor(f"{layer}.{name}_new{side}", new, is_parameter=True))
                continue
            arguments.append(builder.register_tensor(f"{layer}.{name}{side}", ordered.float(), is_parameter=True))
    slots = tuple(builder.allocate_slot() for _ in node.outputs)
    builder.steps.append((partial(_run_layer, kind, direction, len(node.outputs)), tuple(arguments), slots))
    builder.operators.append(node.op)
    builder.values |= {name: Value(slot) for name, slot in zip(node.outputs, slots, strict=True) if name}
    return Value(slots[0])


def _run_layer(kind: str, direction: str, outputs: int, x: Tensor, hidden: Tensor | None, cell: Tensor | None, *weights: Tensor) -> Any:
    """Run one recurrent layer over ``(T, N, in)``, and return ONNX's outputs.

    Args:
        kind: "RNN", "RELU", "GRU", "GRU, reset first" or "LSTM".
        direction: "forward", "reverse" or "bidirectional".
        outputs: number of outputs that the node has.
        x: the input.
        hidden: ``(directions, N, H)`` first hidden state, or None for zeros.
        cell: the same of the cell of an LSTM.
        weights: torch's weights and biases of each direction.
    """
    directions = 2 if direction == "bidirectional" else 1
    zeros = x.new_zeros(directions, x.shape[1], weights[1].shape[1])
    first = zeros if hidden is None else hidden
    x = x.flip(0) if direction == "reverse" else x
    settings = (list(weights), True, 1, 0.0, False, directions == 2, False)
    if kind == "LSTM":
        answer, *last = torch.lstm(x, [first, zeros if cell is None else cell], *settings)
    elif kind == RESETS_FIRST:
        parts = [
            _run_gru_that_resets_first(x.flip(0) if place else x, first[place], *weights[6 * place : 6 * place + 6])
            for place in range(directions)
        ]
        answer = torch.cat([part.flip(0) if place else part for place, part in enumerate(parts)], dim=-1)
        last = [torch.stack([part[-1] for part in parts])]
    else:
        functions: dict[str, Callable[..., Sequence[Tensor]]] = {"RNN": torch.rnn_tanh, "RELU": torch.rnn_relu, "GRU": torch.gru}
        answer, *last = functions[kind](x, first, *settings)
    answer = answer.flip(0) if direction == "reverse" else answer
    # ONNX has an axis of directions, (T, directions, N, H), where torch joins them in the last.
    answer = answer.reshape(*answer.shape[:2], directions, -1).transpose(1, 2)
    return (answer, *last)[:outputs]


def _run_gru_that_resets_first(
    x: Tensor, state: Tensor, of_x: Tensor, of_gates: Tensor, of_new: Tensor, bias_x: Tensor, bias_gates: Tensor, bias_new: Tensor
) -> Tensor:
    """Run a GRU that resets its state before the product, and return the states ``(T, N, H)``."""
    size, states = state.shape[-1], []
    inputs = F.linear(x, of_x, bias_x)
    for step in range(x.shape[0]):
        reset, update = torch.sigmoid(inputs[step][:, : 2 * size] + F.linear(state, of_gates, bias_gates)).chunk(2, -1)
        new = torch.tanh(inputs[step][:, 2 * size :] + F.linear(reset * state, of_new, bias_new))
        state = (1 - update) * new + update * state
        states.append(state)
    return torch.stack(states)
