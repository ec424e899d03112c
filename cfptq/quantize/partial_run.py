"""Runs of a network in parts, with outputs that the caller decides or from one layer on."""

from __future__ import annotations

from itertools import takewhile

import torch
from torch import Tensor, fx

from cfptq.network import Layer, Network


class LayerwiseRun(fx.Interpreter):
    """Run of a network that stops at each layer for its output.

    Call ``run_to`` and then ``set_output``, layer by layer. Every value is computed once and freed after its last use. Only
    ``finish_with`` records gradients.

    Args:
        network: the network to run.
        rows: its input, (N, ...).
    """

    def __init__(self, network: Network, rows: Tensor) -> None:
        super().__init__(network.graph)
        first, *self._rest = network.graph.graph.nodes
        self.env[first] = rows

    def run_to(self, layer: Layer) -> Tensor:
        """Run up to the next layer in execution order, and return its input, (N, ...)."""
        with torch.no_grad():
            while self._rest[0].name != layer.node:
                node = self._rest.pop(0)
                self._keep(node, self.run_node(node))
            self._reached = self._rest.pop(0)
        inputs: Tensor = self.env[self._reached.all_input_nodes[0]]
        return inputs

    def compute_output(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the output of the layer that was reached for other inputs, weight and bias."""
        return _compute_node_output(self._reached, inputs, weight, bias)

    def set_output(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Set the output of the layer that was reached to that for other inputs, weight and bias."""
        self._keep(self._reached, self.compute_output(inputs, weight, bias))

    def finish_with(self, output: Tensor) -> Tensor:
        """Return the network's raw output for another output of the layer that was reached.

        The result is differentiable. The run itself stays at the layer.
        """
        kept, self.env = self.env, {**self.env, self._reached: output}
        try:
            for node in self._rest:
                self.env[node] = self.run_node(node)
            final: Tensor = self.env[self._rest[-1]]
        finally:
            self.env = kept
        return final

    def _keep(self, node: fx.Node, value: Tensor) -> None:
        """Keep a node's value, and free those that it used last."""
        self.env[node] = value
        for used in self.user_to_last_uses.get(node, ()):
            del self.env[used]


class RecordedRun:
    """Run of a network that keeps every value, so that ``rerun`` computes only what stands behind one layer.

    Args:
        network: the network to run.
        rows: its input, (N, ...).

    Attributes:
        output: the network's raw output.
    """

    def __init__(self, network: Network, rows: Tensor) -> None:
        self._interpreter = fx.Interpreter(network.graph, garbage_collect_values=False)
        self._nodes = {node.name: node for node in network.graph.graph.nodes}
        with torch.no_grad():
            self.output: Tensor = self._interpreter.run(rows)
        self._values = dict(self._interpreter.env)

    def inputs(self, layer: Layer) -> Tensor:
        """Return the input of a layer, (N, ...)."""
        value: Tensor = self._values[self._nodes[layer.input]]
        return value

    def rerun(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the network's raw output for another weight and bias of one layer."""
        changed = self._nodes[layer.node]
        known = dict(takewhile(lambda entry: entry[0] is not changed, self._values.items()))
        known[changed] = _compute_node_output(changed, self.inputs(layer), weight, bias)
        with torch.no_grad():
            output: Tensor = self._interpreter.run(initial_env=known)
        return output


def _compute_node_output(node: fx.Node, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the output of a layer's node for other inputs, weight and bias."""
    with torch.no_grad():
        output: Tensor = node.target(inputs, weight, bias, *node.args[3:])  # type: ignore[operator]
    return output
