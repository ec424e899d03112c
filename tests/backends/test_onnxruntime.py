"""Exported files are checked by running them in ONNX Runtime, and by reading the integers back out of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_networks import MODELS, TEST_ROWS, made, planned

import cfptq
from cfptq.actions import Continuous
from cfptq.backends.onnxruntime import OPSET, OPSET_INT2, build_prepared_onnx_model, read_integers, to_onnx_model
from cfptq.backends.quantize_static import quantize_onnx_by_default
from cfptq.errors import ModelError, SaturationWarning
from cfptq.network import capture
from cfptq.network import to_onnx_model as export_in_float
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.session import int8_saturates, open_session
from cfptq.quantize import Activations, fake_quantize_network


def session(model: onnx.ModelProto, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, rows: torch.Tensor) -> np.ndarray:
    return OnnxFile(model).run(rows).numpy()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("widths", [(4, 3, 8), (2, 8, 2), (8, 8, 8)])
def test_the_file_holds_the_plans_integers_and_computes_what_the_twin_computes(kind: str, widths: tuple[int, ...]) -> None:
    network, rows = made(kind)
    plan = planned(network, rows, widths)
    model = to_onnx_model(network, plan)
    for layer in plan.layers:
        assert np.array_equal(read_integers(model, layer.name), layer.integers.numpy())
    generator = torch.Generator().manual_seed(9)
    people = torch.randn(TEST_ROWS, *network.input_shape, generator=generator)
    with torch.no_grad():
        expected = fake_quantize_network(network, plan)(people).numpy()
    difference = np.abs(run(model, people) - expected).reshape(TEST_ROWS, -1).max(axis=1)
    assert (difference <= 1e-3).mean() >= 0.999


@pytest.mark.parametrize("kind", MODELS)
def test_packed_and_unpacked_files_agree_bit_for_bit_and_packed_is_smaller(kind: str) -> None:
    network, rows = made(kind)
    plan = planned(network, rows, (4, 2, 3))
    packed, unpacked = to_onnx_model(network, plan), to_onnx_model(network, plan, storage="plain")
    assert np.array_equal(run(packed, rows), run(unpacked, rows))
    assert sum(len(t.raw_data) for t in packed.graph.initializer) < sum(len(t.raw_data) for t in unpacked.graph.initializer)
    assert {t.data_type for t in unpacked.graph.initializer}.isdisjoint({onnx.TensorProto.INT4, onnx.TensorProto.INT2})


@pytest.mark.parametrize("widths", [(4, 4, 8), (2, 2, 2), (8, 8, 8)])
def test_packed_weights_run_in_integer_kernels(widths: tuple[int, ...], tmp_path: Path) -> None:
    network, rows = made("mlp")
    session(to_onnx_model(network, planned(network, rows, widths)), tmp_path / "optimized.onnx")
    operations = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operations == ["QuantizeLinear", "QGemm", "QGemm", "QGemm"]


def test_convolutions_run_in_integer_kernels(tmp_path: Path) -> None:
    network, rows = made("cnn")
    session(to_onnx_model(network, planned(network, rows)), tmp_path / "optimized.onnx")
    operations = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operations.count("QLinearConv") == 2
    assert "Conv" not in operations


@pytest.mark.parametrize(("bits", "input_bits"), [(8, 32), (32, 32), (16, 16), (32, 8), (16, 8)])
def test_every_activation_format_computes_what_the_twin_computes(bits: int, input_bits: int) -> None:
    network, rows = made("mlp")
    plan = planned(network, rows, activations=Activations(bits, input_bits))
    with torch.no_grad():
        expected = fake_quantize_network(network, plan)(rows).numpy()
    difference = np.abs(run(to_onnx_model(network, plan), rows) - expected).max(axis=1)
    assert (difference <= 1e-3).mean() >= 0.999


@pytest.mark.parametrize("widths", [(4, 4, 8), (2, 3, 4), (8, 8, 8)])
def test_a_two_step_input_runs_in_integer_kernels_and_computes_what_the_twin_computes(widths: tuple[int, ...], tmp_path: Path) -> None:
    network, rows = made("mlp")
    plan = planned(network, rows, widths, activations=Activations(input_bits="two-step"))
    model = to_onnx_model(network, plan)
    session(model, tmp_path / "optimized.onnx")
    operations = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operations.count("QGemm") == 4 and "Gemm" not in operations  # the first layer runs twice
    with torch.no_grad():
        expected = fake_quantize_network(network, plan)(rows).numpy()
    difference = np.abs(run(model, rows) - expected).max(axis=1)
    assert (difference <= 1e-3).mean() >= 0.999
    single = planned(network, rows, widths, activations=Activations(input_bits=8))
    with torch.no_grad():
        wanted = network(rows).numpy()
    errors = [np.square(run(to_onnx_model(network, each), rows) - wanted).mean() for each in (plan, single)]
    assert widths != (8, 8, 8) or errors[0] < errors[1]
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["cfptq.activations"])[network.input_name] == "uint8 in two steps"
    assert said["cfptq.input_choice"] == "asked for"


def test_layers_that_share_a_two_step_input_share_its_quantizers() -> None:
    class Branches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.left(x)) + self.right(x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Branches().eval()
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    network = capture(model, rows[:2])
    plan = planned(network, rows, (8, 8), activations=Activations(input_bits="two-step"))
    file = to_onnx_model(network, plan)
    assert [node.op_type for node in file.graph.node].count("QuantizeLinear") == 2
    with torch.no_grad():
        assert np.abs(run(file, rows) - fake_quantize_network(network, plan)(rows).numpy()).max() <= 1e-3


def test_any_batch_runs_and_a_row_does_not_depend_on_its_neighbours() -> None:
    network, rows = made("mlp")
    runner = session(to_onnx_model(network, planned(network, rows)))
    whole = runner.run(None, {"input": rows.numpy()})[0]
    assert np.array_equal(np.concatenate([runner.run(None, {"input": row[None].numpy()})[0] for row in rows[:20]]), whole[:20])


def test_the_file_says_how_it_was_made() -> None:
    network, rows = made("mlp")
    plan = planned(network, rows)
    model = to_onnx_model(network, plan, {"owner": "risk"})
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["cfptq.method"] == "test"
    assert json.loads(said["cfptq.bits"]) == plan.bits
    assert said["cfptq.seed"] == "0"
    assert said["cfptq.plan"] == plan.digest
    assert said["owner"] == "risk"


def test_opsets_are_as_old_as_the_integers_allow() -> None:
    network, rows = made("mlp")
    assert to_onnx_model(network, planned(network, rows, (4, 4, 8))).opset_import[0].version == OPSET
    assert to_onnx_model(network, planned(network, rows, (2, 4, 8))).opset_import[0].version == OPSET_INT2


@pytest.mark.parametrize(("newest", "container"), [(25, onnx.TensorProto.INT2), (24, onnx.TensorProto.INT4), (20, onnx.TensorProto.INT8)])
def test_older_runtimes_get_the_next_wider_type_and_the_same_answers(newest: int, container: int) -> None:
    network, rows = made("mlp")
    plan = planned(network, rows, (2, 2, 2))
    model = to_onnx_model(network, plan, opset=newest)
    assert model.opset_import[0].version <= newest
    assert {tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith("weight_integers")} == {container}
    assert np.array_equal(run(model, rows), run(to_onnx_model(network, plan), rows))


def test_what_an_old_opset_lacks_is_named() -> None:
    network, rows = made("mlp")
    with pytest.raises(ModelError, match=r"16-bit activations.*activation_bits=8"):
        to_onnx_model(network, planned(network, rows, activations=Activations(16, 8)), opset=20)
    for opset in ("x", 20.5, None):
        with pytest.raises(ModelError, match="whole number from 18"):
            to_onnx_model(network, planned(network, rows), opset=opset)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"at least 18 .*got 12"):
        to_onnx_model(network, planned(network, rows), opset=12)


def test_the_same_plan_gives_the_same_bytes() -> None:
    twice = (made.__wrapped__("residual") for _ in range(2))  # captured anew
    first, second = (to_onnx_model(network, planned(network, rows)) for network, rows in twice)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_portable_weights_stay_within_63_in_the_file() -> None:
    network, rows = made("mlp")
    model = to_onnx_model(network, planned(network, rows, (7,), portable=True))
    assert {entry.key: entry.value for entry in model.metadata_props}["cfptq.portable"] == "true"
    assert max(int(np.abs(read_integers(model, layer.name)).max()) for layer in network.layers) <= 63


def test_a_plan_for_another_network_is_refused() -> None:
    network, rows = made("mlp")
    other, _ = made("mlp", seed=1)
    with pytest.raises(ModelError, match="another model"):
        to_onnx_model(other, planned(network, rows))


def test_rounding_the_prepared_model_again_changes_nothing() -> None:
    network, rows = made("residual")
    plan = planned(network, rows)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in build_prepared_onnx_model(network, plan).graph.initializer}
    for layer in plan.layers:
        scale = layer.scale.numpy().reshape(-1, *[1] * (layer.integers.dim() - 1))
        assert np.array_equal(np.rint(weights[f"{layer.name}.weight"] / scale).astype(np.int8), layer.integers.numpy())


@pytest.mark.parametrize("bits", [8, 4])
def test_the_vanilla_peer_is_quantized_at_the_width_it_claims(bits: int, tmp_path: Path) -> None:
    network, rows = made("mlp")
    quantize_onnx_by_default(export_in_float(network), rows, bits, tmp_path / "vanilla.onnx")
    model = onnx.load(tmp_path / "vanilla.onnx")
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) == 2}
    assert kinds == {onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.INT4}
    with torch.no_grad():
        error = np.abs(run(model, rows) - network(rows).numpy()).mean()
    assert error < {8: 0.05, 4: 0.5}[bits]


def saturating(portable: bool) -> cfptq.Result:
    """A network whose 8-bit weights saturate without VNNI: many large activations times weights of the full range."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)).eval()
    with torch.no_grad():
        model[0].bias.fill_(10.0)
        model[2].weight.abs_()
        model[2].bias.copy_(-(model[2].weight.sum(dim=1) * 10))
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    space = cfptq.ActionSet.from_columns(rows, [Continuous(f"x{column}", column=column) for column in range(8)], favourable=1)
    return cfptq.calibrate(model, [rows], space, budget=8.0, portable=portable, progress=False)


def test_a_checked_file_says_where_a_default_session_decides_otherwise(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        saturating(portable=False).to_onnx(tmp_path / "full.onnx", check=True)
    said = [str(warning.message) for warning in told if warning.category is SaturationWarning]
    assert bool(said) is int8_saturates()
    assert all("session.x64quantprecision" in sentence and "portable=True" in sentence for sentence in said)


@pytest.mark.needs_vnni
@pytest.mark.parametrize("kind", MODELS)
def test_full_range_weights_are_right_in_a_default_session(kind: str) -> None:
    network, rows = made(kind)
    model = to_onnx_model(network, planned(network, rows, (8,)))
    default = session(model).run(None, {"input": rows.numpy()})[0]
    assert np.abs(default - run(model, rows)).max() <= 1e-5


def test_by_default_a_file_is_right_in_a_default_session_on_every_processor(tmp_path: Path) -> None:
    result = saturating(portable=True)
    result.to_onnx(tmp_path / "portable.onnx", check=True)
    assert result.calibration is not None and set(result.bits["0"]) == {8} and set(result.bits["2"]) == {7}  # type: ignore[arg-type]
    rows = result.calibration.rows
    default = open_session(tmp_path / "portable.onnx", precise=False).run(None, {"input": rows.numpy()})[0]
    with torch.no_grad():
        assert np.abs(default - result.module()(rows).numpy()).max() <= 1e-3
