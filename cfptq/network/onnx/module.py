"""An ONNX graph as a differentiable PyTorch module."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx.inliner import inline_local_functions
from torch import Tensor, nn

from cfptq.errors import CfptqError, FileError
from cfptq.network.head import Head
from cfptq.network.onnx.compiler import GraphCompiler
from cfptq.network.onnx.file import find_rows_input, find_score_output, name_source, read_decision_rule, read_onnx, summarize_error
from cfptq.network.onnx.graph_edits import free_batch_dimension, inline_constant_branches, split_integer_layers
from cfptq.network.onnx.graph_reading import read_graph
from cfptq.network.onnx.interface import OnnxInterface, read_interface


@dataclass(frozen=True, eq=False)
class OnnxSource:
    """The file that a module was read from.

    Attributes:
        model: the file's content.
        where: the file's path, or a phrase for a model in memory.
        head: kind of output that the file records, or None.
        threshold: decision threshold that the file records, or None.
        interface: what the file takes and gives, or None where that is float32 rows and float32 scores alone.
    """

    model: onnx.ModelProto
    where: str
    head: Head | None
    threshold: float | None
    interface: OnnxInterface | None


class OnnxModule(nn.Module):
    """The torch twin of an ONNX graph, differentiable and as fast as a module written by hand.

    Everything that depends on initializers only is computed at construction. Weights of float layers are parameters without
    ``requires_grad``. They keep the names that the exporter kept, so that ``hidden.0.weight`` stays layer ``hidden.0`` when the module is
    captured. QuantizeLinear has the straight-through gradient, which is zero where it clamps. Products of quantized tensors are computed
    exactly on integers, so that rounding equals that of ONNX Runtime's integer kernels.

    Args:
        source: path of an ONNX file, or a model in memory.
        output: the output to compute; None is the one that holds class scores.

    Attributes:
        operators: the ONNX operators that run, in order. Dequantizing a tensor counts as the operator that reads it.
        input_name: the graph's name of the rows.
        output_name: the graph's name of the scores.
        source: the file that was read.

    Raises:
        FileError: the file cannot be read, or its graph is inconsistent.
        ModelError: some operators have no torch equivalent (the message names all of them), or there are several inputs, or no
            output of scores.
    """

    def __init__(self, source: str | os.PathLike[str] | onnx.ModelProto, *, output: str | None = None) -> None:
        super().__init__()
        model = read_onnx(source)
        whole, where = model, name_source(source)
        if model.functions:
            model = inline_local_functions(model)
        rows = find_rows_input(model)
        result = find_score_output(model, output)
        try:
            model = free_batch_dimension(split_integer_layers(inline_constant_branches(model)))
            # Set before the layers are registered, so that no layer takes one of these names.
            self.operators: tuple[str, ...] = ()
            self.input_name, self.output_name = rows.name, result
            self.source = OnnxSource(whole, where, *read_decision_rule(whole), read_interface(model, result))
            nodes, constants = read_graph(model, rows.name, result)
            compiler = GraphCompiler(self, nodes, constants, rows.name, result)
        except CfptqError:
            raise
        except Exception as error:
            raise FileError(
                f"The graph of {where} cannot be read ({summarize_error(error)}). Check it with onnx.checker, or export it again."
            ) from error
        self._steps = compiler.steps
        self._template: list[Any] = [None] * compiler.slots
        for slot, literal in compiler.literals:
            self._template[slot] = literal
        # Tensors are read from the modules' own dictionaries, because getattr on a module costs as much as a small layer.
        self._weights = [(slot, module, key) for slot, module, kind, key in compiler.held if kind == "_parameters"]
        self._fixed = [(slot, module, key) for slot, module, kind, key in compiler.held if kind == "_buffers"]
        self._input, self._output = compiler.input, compiler.output
        self.operators = tuple(compiler.operators)
        self._traced = compiler.get_plain_slots()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the raw output, float32 and differentiable with respect to ``x``.

        Args:
            x: rows of the shape that the graph takes.
        """
        answer: Tensor = self._run_steps(x)[self._output]
        return answer if answer.dtype == torch.float32 else answer.to(torch.float32)

    def trace(self, x: Tensor) -> dict[str, Tensor]:
        """Compute every tensor of the graph that the module computes as the graph has it.

        Args:
            x: rows of the shape that the graph takes.

        Returns:
            The tensors by the graph's names, in the order in which they are computed.
        """
        with torch.no_grad():
            values = self._run_steps(x)
        return {name: values[slot] for name, slot in self._traced.items() if isinstance(values[slot], Tensor)}

    def _run_steps(self, x: Tensor) -> list[Any]:
        values = self._template.copy()
        for slot, module, key in self._weights:
            values[slot] = module._parameters[key]
        for slot, module, key in self._fixed:
            values[slot] = module._buffers[key]
        values[self._input] = x if x.dtype == torch.float32 else x.to(torch.float32)
        for function, arguments, target in self._steps:
            result = function(*[values[slot] for slot in arguments])
            if isinstance(target, int):
                values[target] = result
            else:
                for slot, part in zip(target, result, strict=False):
                    values[slot] = part
        return values
