"""Modules whose forward takes several inputs, each some of the model's columns, as one module of all columns."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cfptq.errors import FileError, ModelError
from cfptq.network.onnx.raw_inputs import COLUMNS_KEY
from cfptq.network.wrappers import POSITIONAL

#: Element types that an input may have.
TYPES = {"float32": torch.float32, "int64": torch.int64}
_ONNX_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass(frozen=True)
class InputPart:
    """One input of a module.

    Attributes:
        name: name of the input.
        columns: columns of the rows that it takes, in its own order.
        type: ``"float32"`` or ``"int64"``.
    """

    name: str
    columns: tuple[int, ...]
    type: str

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> InputPart:
        """Read plain values.

        Raises:
            FileError: they are those of no input.
        """
        part = InputPart(str(content["name"]), tuple(map(int, content["columns"])), str(content["type"]))
        if part.type not in TYPES or not part.columns:
            raise FileError(f"The saved input {part.name!r} is damaged. Save the result again.")
        return part


class SeveralInputs(nn.Module):
    """A module with several inputs that takes one tensor of all columns.

    Args:
        module: the module.
        parts: its inputs, in the order of its forward.
    """

    def __init__(self, module: nn.Module, parts: Sequence[InputPart]) -> None:
        super().__init__()
        self.module = module
        self.parts = tuple(parts)

    def forward(self, x: Tensor) -> Any:
        """Return the module's output for rows (N, d)."""
        given = []
        for part in self.parts:
            first, last = part.columns[0], part.columns[-1]
            if part.columns == tuple(range(first, last + 1)):
                chosen = x[:, first : last + 1]
            else:
                chosen = torch.cat([x[:, column : column + 1] for column in part.columns], dim=1)
            given.append(chosen if part.type == "float32" else chosen.long())
        return self.module(*given)


def list_needed_inputs(module: nn.Module) -> list[str]:
    """Return the names of the inputs that the module's forward needs."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [entry.name for entry in parameters if entry.kind in POSITIONAL and entry.default is entry.empty]


def join_inputs(
    module: nn.Module, inputs: Mapping[str, Sequence[str | int]], column_names: Sequence[str], example: Tensor | None = None
) -> SeveralInputs:
    """Return a module of all columns for a module of several inputs. The types of the inputs are those that it runs with.

    Args:
        module: the module.
        inputs: columns of each input, as names or numbers, by the name of the forward's parameter.
        column_names: names of all columns.
        example: rows (N, d) to try types on. By default rows of zeros.

    Raises:
        ModelError: an input or a column is unknown, a column is in no input or in several, or the module runs with no types.
    """
    needed = list_needed_inputs(module)
    if sorted(inputs) != sorted(needed):
        raise ModelError(f"inputs must give the columns of {', '.join(needed)}, the inputs of the forward, got {', '.join(inputs)}.")
    place_of = {name: place for place, name in enumerate(column_names)}
    chosen: dict[str, tuple[int, ...]] = {}
    for name in needed:
        places = []
        for entry in inputs[name]:
            place = entry if isinstance(entry, int) and not isinstance(entry, bool) else place_of.get(str(entry), -1)
            if not 0 <= place < len(column_names):
                raise ModelError(
                    f"inputs[{name!r}] must name columns of the action set, got {entry!r}. It has {', '.join(column_names[:20])}."
                )
            places.append(place)
        if not places:
            raise ModelError(f"inputs[{name!r}] must name at least one column.")
        chosen[name] = tuple(places)
    listed = [place for places in chosen.values() for place in places]
    wrong = [name for place, name in enumerate(column_names) if listed.count(place) != 1]
    if wrong:
        count = listed.count(place_of[wrong[0]])
        raise ModelError(f"Each column must be in one input, but {wrong[0]!r} is in {count or 'none'}. Correct inputs.")
    rows = torch.zeros(2, len(column_names)) if example is None else example
    refused = ""
    for types in itertools.product(TYPES, repeat=len(needed)):
        joined = SeveralInputs(module, [InputPart(name, chosen[name], kind) for name, kind in zip(needed, types, strict=True)])
        training = module.training
        try:
            module.eval()
            with torch.no_grad():
                joined(rows)
            return joined
        except Exception as error:
            refused = str(error).splitlines()[0] if str(error) else type(error).__name__
        finally:
            module.train(training)
    raise ModelError(f"{type(module).__name__} must run on float32 or int64 inputs of these columns, but fails: {refused}.")


def split_input(model: onnx.ModelProto, parts: Sequence[InputPart]) -> onnx.ModelProto:
    """Return a model that takes several inputs in place of one tensor of all columns. It records the name of that tensor."""
    split = onnx.ModelProto()
    split.CopyFrom(model)
    graph = split.graph
    columns = graph.input[0].name
    width = sum(len(part.columns) for part in parts)
    if any(part.name == columns for part in parts):
        inner = f"{columns}_columns"
        for node in graph.node:
            node.input[:] = [inner if name == columns else name for name in node.input]
        columns = inner
    nodes = []
    names = []
    for part in parts:
        names.append(part.name)
        if part.type != "float32":
            names[-1] = f"{part.name}_as_float32"
            nodes.append(helper.make_node("Cast", [part.name], [names[-1]], to=TensorProto.FLOAT))
    order = [place for part in parts for place in part.columns]
    back = [order.index(place) for place in range(width)]
    is_in_order = back == list(range(width))
    nodes.append(helper.make_node("Concat", names, [columns if is_in_order else f"{columns}_by_input"], axis=1))
    if not is_in_order:
        graph.initializer.append(numpy_helper.from_array(torch.tensor(back).numpy(), f"{columns}_order"))
        nodes.append(helper.make_node("Gather", [f"{columns}_by_input", f"{columns}_order"], [columns], axis=1))
    nodes += [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    for part in parts:
        graph.input.append(helper.make_tensor_value_info(part.name, _ONNX_TYPES[part.type], ["batch", len(part.columns)]))
    graph.value_info.append(helper.make_tensor_value_info(columns, TensorProto.FLOAT, ["batch", width]))
    helper.set_model_props(split, {entry.key: entry.value for entry in split.metadata_props} | {COLUMNS_KEY: columns})
    return split
