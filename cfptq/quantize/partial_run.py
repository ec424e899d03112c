"""Running a network in parts: layer by layer with outputs that the caller decides, or again from one layer on."""

from __future__ import annotations

from itertools import takewhile

import torch
from torch import Tensor, fx

from cfptq.network import Layer, Network


class LayerwiseRun(fx.Interpreter):
    """A run of ``network`` on ``rows`` that stops at each layer: :meth:`reach` it, then :meth:`set_output` what it gives.

    Every value is computed once and freed after its last use. No gradients, but in :meth:`finish_with`.
    """

    def __init__(self, network: Network, rows: Tensor) -> None:
        super().__init__(network.graph)
        first, *self.rest = network.graph.graph.nodes
        self.env[first] = rows

    def reach(self, layer: Layer) -> Tensor:
        """Run up to ``layer``, the next in execution order; its input, (N, ...)."""
        with torch.no_grad():
            while self.rest[0].name != layer.node:
                node = self.rest.pop(0)
                self._keep(node, self.run_node(node))
            self.reached = self.rest.pop(0)
        inputs: Tensor = self.env[self.reached.all_input_nodes[0]]
        return inputs

    def put_out(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Let the layer that was reached put out what ``weight`` and ``bias`` make of ``inputs``."""
        self._keep(self.reached, compute_node_output(self.reached, inputs, weight, bias))

    def ended_with(self, output: Tensor) -> Tensor:
        """The network's raw output if the layer that was reached put out ``output`` and all behind it ran as it is; differentiable.

        The run itself stays where it is.
        """
        kept, self.env = self.env, {**self.env, self.reached: output}
        try:
            for node in self.rest:
                self.env[node] = self.run_node(node)
            ended: Tensor = self.env[self.rest[-1]]
        finally:
            self.env = kept
        return ended

    def _keep(self, node: fx.Node, value: Tensor) -> None:
        self.env[node] = value
        for used in self.user_to_last_uses.get(node, ()):
            del self.env[used]


class RecordedRun:
    """A run of ``network`` on ``rows`` that keeps every value, so that :meth:`rerun` computes only what stands behind one layer.

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
        """What feeds ``layer``, (N, ...)."""
        value: Tensor = self._values[self._nodes[layer.input]]
        return value

    def rerun(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The network's output if ``layer`` had another weight and bias."""
        changed = self._nodes[layer.node]
        known = dict(takewhile(lambda entry: entry[0] is not changed, self._values.items()))
        known[changed] = compute_node_output(changed, self.inputs(layer), weight, bias)
        with torch.no_grad():
            output: Tensor = self._interpreter.run(initial_env=known)
        return output


def compute_node_output(node: fx.Node, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer's node puts out for other inputs, weight and bias."""
    with torch.no_grad():
        output: Tensor = node.target(inputs, weight, bias, *node.args[3:])  # type: ignore[operator]
    return output
