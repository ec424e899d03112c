"""The choice of the input's format, the rows a wide network is rounded on, and runs in parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cfptq.calibration import CalibrationSet
from cfptq.errors import ModelError
from cfptq.network import Network, capture, count_multiply_adds
from cfptq.quantize import (
    ActivationFormat,
    Activations,
    LayerwiseRun,
    QuantizationPlan,
    RecordedRun,
    build_layer_problem,
    quantize,
    sample_affordable_rows,
)


def network_of(*layers: nn.Module, shape: tuple[int, ...] = (12,)) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return capture(nn.Sequential(*layers).eval(), torch.zeros(2, *shape))


def calibration(network: Network, rows: int = 64) -> CalibrationSet:
    x = torch.randn(rows, *network.input_shape, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(rows, dtype=torch.int64)
    return CalibrationSet(x, zeros.to(torch.uint8), torch.ones(rows), torch.arange(rows), zeros)


def planned(network: Network, input_bits: object) -> QuantizationPlan:
    bits = {layer.name: 8 for layer in network.layers}
    return quantize(
        network, calibration(network), bits, method="test", seed=0, activations=Activations(input_bits=input_bits), progress=False
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "chosen", "because"),
    [
        (network_of(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)), "float", "96 weights"),
        (network_of(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2), shape=(300,)), "float", "300 inputs"),
        (network_of(nn.Linear(600, 200), nn.ReLU(), nn.Linear(200, 2), shape=(600,)), "uint8 in two steps", "120000 weights"),
        (network_of(nn.Conv2d(32, 300, 3), nn.Flatten(), nn.Linear(300, 2), shape=(32, 3, 3)), "uint8", "'0' is a convolution"),
    ],
)
def test_the_inputs_format_follows_what_the_layers_cost_that_it_feeds(network: Network, chosen: str, because: str) -> None:
    plan = planned(network, None)
    assert str(plan.activations[0]) == chosen
    assert because in plan.input_choice


def test_two_steps_are_refused_where_a_convolution_takes_the_input() -> None:
    network = network_of(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2), shape=(1, 3, 3))
    with pytest.raises(ModelError, match="'0' is a convolution"):
        planned(network, "two-step")
    with pytest.raises(ModelError, match="two-step"):
        Activations(input_bits=12)


def test_multiply_adds_count_every_position_of_a_convolution() -> None:
    network = network_of(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 2), shape=(3, 8, 8))
    assert count_multiply_adds(network) == 4 * 3 * 9 * 64 + 4 * 64 * 2


def test_rows_are_sampled_by_weight_where_they_cost_too_much() -> None:
    network, weights = network_of(nn.Linear(12, 8), nn.Linear(8, 2)), torch.rand(1000, generator=torch.Generator().manual_seed(0))
    weights[::2] = 0
    every, same = sample_affordable_rows(network, weights, max_macs=10**9, min_rows=10)
    assert torch.equal(every, torch.arange(1, 1000, 2)) and torch.equal(same, weights[1::2])  # rows of weight 0 cost nothing
    few, counts = sample_affordable_rows(network, weights, max_macs=count_multiply_adds(network) * 200, min_rows=10)
    assert int(counts.sum()) == 200 and len(few) <= 200 and bool((few % 2 == 1).all())
    values = torch.linspace(0, 1, 1000)
    sampled = float((values[few] * counts).sum() / counts.sum())
    assert sampled == pytest.approx(float((values * weights).sum() / weights.sum()), abs=0.01)
    assert int(sample_affordable_rows(network, weights, max_macs=1, min_rows=10)[1].sum()) == 10


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, (2, 3), padding="same"),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv1d(4, 6, 4, padding="same"),
    ],
    ids=str,
)
def test_the_patches_of_a_convolution_times_its_weight_are_its_output(layer: nn.Conv1d | nn.Conv2d) -> None:
    shape = (4, 7, 8)[: layer.weight.dim() - 1]
    network = network_of(layer, nn.ReLU(), nn.Flatten(), nn.Linear(layer(torch.zeros(1, *shape)).numel(), 2), shape=shape)
    found, rows = network.layers[0], calibration(network, 5).rows
    inputs = network.observe(rows, [found.input])[found.input]
    problem = build_layer_problem(network, found, 8, inputs, inputs, ActivationFormat(found.input, 32), torch.ones(5))
    weight = network.weight("0").reshape(layer.groups, -1, problem.patches(inputs).shape[2])
    products = torch.einsum("gmk,gok->mgo", problem.patches(inputs), weight).reshape(5, -1, 6).transpose(1, 2)
    with torch.no_grad():
        expected = (layer(rows) - layer.bias.reshape(-1, *[1] * (rows.dim() - 2))).flatten(2)
    torch.testing.assert_close(products, expected, atol=1e-5, rtol=1e-5)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.relu(self.first(x))
        return self.head(x + torch.relu(self.second(x)))  # type: ignore[no-any-return]


def test_a_run_in_parts_computes_what_the_changed_network_computes() -> None:
    network = capture(Residual().eval(), torch.zeros(2, 12))
    rows = calibration(network).rows
    changed = {layer.name: (network.weight(layer.name) * 1.1, network.bias(layer.name)) for layer in network.layers}
    recording, by_layer = RecordedRun(network, rows), LayerwiseRun(network, rows)
    recorded = recording.output.clone()
    assert torch.allclose(recorded, network(rows), atol=1e-5)
    for number, layer in enumerate(network.layers):
        alone = network.with_parameters({layer.name: changed[layer.name]})
        assert torch.allclose(recording.rerun(layer, *changed[layer.name]), alone(rows), atol=1e-5)
        before = network.with_parameters({earlier.name: changed[earlier.name] for earlier in network.layers[:number]})
        reached = by_layer.run_to(layer)
        assert torch.allclose(reached, before.observe(rows, [layer.input])[layer.input], atol=1e-5)
        by_layer.set_output(reached, *changed[layer.name])
    assert torch.equal(recording.output, recorded)
