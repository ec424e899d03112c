"""One plan, every toolchain: each holds the plan's integers and computes what the twin computes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import pytest
import torch
from packaging.requirements import Requirement
from small_networks import MODELS, TEST_ROWS, factual, made, planned, planned_by_channel
from torch import nn

import cfptq
from cfptq.allocation import BitAllocation, LayerScores
from cfptq.backends.onnxruntime import order_for_file
from cfptq.backends.onnxruntime import read_integers as file_integers
from cfptq.datasets import locate
from cfptq.errors import FileError, MissingDependencyError, ModelError
from cfptq.experiments.recipe import Recipe
from cfptq.network import Head, Network, as_predictor
from cfptq.network.onnx.session import open_session
from cfptq.pipeline.result import Result
from cfptq.quantize import Activations

Run = Callable[[torch.Tensor], torch.Tensor]
Deployed = tuple[Run, Mapping[str, torch.Tensor]]

INTEGER_INPUT = Activations(8, 8)
FLOAT_INPUT = Activations(8, 32)
TWO_STEP_INPUT = Activations(8, "two-step")
REPOSITORY = Path(__file__).parents[2]


@cache
def result_of(kind: str, activations: Activations, widths: tuple[int, ...] = (4, 3, 8, 2), seed: int = 0) -> Result:
    return result_on(*made(kind, seed), activations, widths, Head.LOGIT if kind == "batch norm" else Head.LOGITS)


def result_on(
    network: Network, rows: torch.Tensor, activations: Activations, widths: tuple[int, ...] = (4, 3, 8, 2), head: Head = Head.LOGITS
) -> Result:
    plan = planned(network, rows, widths, activations=activations)
    names, parameters = tuple(plan.bits), tuple(layer.parameters for layer in plan.layers)
    return Result(
        network=network,
        plan=plan,
        allocation=BitAllocation(names, parameters, tuple(plan.bits.values())),
        sensitivity=LayerScores(names, parameters, (1.0,) * len(names), "test"),
        head=head,
        threshold=None,
        calibration=factual(rows),
        teacher=None,
    )


def by_onnxruntime(result: Result, rows: torch.Tensor, folder: Path) -> Deployed:
    result.to_onnx(folder / "model.onnx", check=True)
    model = onnx.load(folder / "model.onnx")
    return session(folder / "model.onnx"), {name: torch.from_numpy(file_integers(model, name)) for name in result.bits}


def by_quantize_static(result: Result, rows: torch.Tensor, folder: Path) -> Deployed:
    from onnxruntime.quantization import quantize_static

    source, target = folder / "prepared.onnx", folder / "quantized.onnx"
    result.prepared_onnx(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        arguments = result.quantize_static_arguments(source)
    quantize_static(source, target, result.calibration_reader(), **arguments)
    stored = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in onnx.load(target).graph.initializer}
    integers = {}
    for layer in result.plan.layers:
        if not result.plan.input_format(layer).is_affine:
            grid = layer.scale.reshape(-1, *[1] * (layer.integers.dim() - 1))
            integers[layer.name] = (stored[f"{layer.name}.weight"] / grid).round().to(torch.int8)
        else:
            integers[layer.name] = stored[f"{layer.name}.weight_quantized"]
    return session(target), integers


def by_fx(result: Result, rows: torch.Tensor, folder: Path) -> Deployed:
    fx = pytest.importorskip("cfptq.backends.fx", exc_type=MissingDependencyError)
    observed = fx.prepare_fx(result.prepared_model(), result.qconfig_mapping(), (rows[:8],))
    observed(rows[:8])
    converted = fx.convert_fx(observed)
    fx.check_coverage(converted, result.plan)
    return converted, fx.read_integers(converted)


def by_pt2e(result: Result, rows: torch.Tensor, folder: Path) -> Deployed:
    pytest.importorskip("cfptq.backends.pt2e", exc_type=MissingDependencyError)
    from cfptq.backends import pt2e

    converted = pt2e.convert_pt2e(
        pt2e.prepare_pt2e(pt2e.export_with_dynamic_batch(result.prepared_model(), rows[:8]), result.pt2e_quantizer())
    )
    pt2e.check_coverage(converted, result.plan)
    return converted, dict(zip(result.bits, pt2e.read_integers(converted), strict=True))


def by_neural_compressor(result: Result, rows: torch.Tensor, folder: Path) -> Deployed:
    pytest.importorskip("cfptq.backends.neural_compressor", exc_type=MissingDependencyError)
    from neural_compressor.torch.quantization import convert, prepare

    from cfptq.backends import pt2e

    converted = convert(prepare(result.prepared_model(), result.neural_compressor_config()))
    return converted, dict(zip(result.bits, pt2e.read_integers(converted), strict=True))


BACKENDS = {
    "onnxruntime": by_onnxruntime,
    "quantize_static": by_quantize_static,
    "fx": by_fx,
    "pt2e": by_pt2e,
    "neural_compressor": by_neural_compressor,
}


def session(path: Path) -> Run:
    runner = open_session(path)
    return lambda rows: torch.from_numpy(runner.run(None, {"input": rows.numpy()})[0])


def assert_agrees(result: Result, deployed: Deployed, people: torch.Tensor) -> None:
    """DESIGN's agreement: the plan's integers; within 1e-3 of the twin on 99.9 % of rows; equal decisions off the boundary."""
    said, expected = logits(deployed[0], result, people), logits(result.module(), result, people)
    assert_holds_the_plan_and_decides(result, deployed, said, expected)
    assert ((said - expected).abs().amax(dim=1) <= 1e-3).float().mean() >= 0.999


def logits(run: Run, result: Result, people: torch.Tensor) -> torch.Tensor:
    def numbers(rows: object) -> object:
        with torch.no_grad():
            return run(torch.as_tensor(rows)).numpy()

    return as_predictor(numbers, example=people[:8], head=result.head).logits(people)


def assert_holds_the_plan_and_decides(result: Result, deployed: Deployed, said: torch.Tensor, expected: torch.Tensor) -> None:
    for layer in result.plan.layers:
        assert torch.equal(deployed[1][layer.name], layer.integers), layer.name
    top = expected.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.05
    assert clear.any()
    assert torch.equal(said.argmax(dim=1)[clear], expected.argmax(dim=1)[clear])


@pytest.mark.parametrize("activations", [INTEGER_INPUT, FLOAT_INPUT], ids=["8-bit input", "float input"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_holds_the_plan_and_computes_what_the_twin_computes(
    backend: str, kind: str, activations: Activations, tmp_path: Path
) -> None:
    result = result_of(kind, activations)
    people = torch.randn(TEST_ROWS, *result.network.input_shape, generator=torch.Generator().manual_seed(9))
    assert result.calibration is not None
    assert_agrees(result, BACKENDS[backend](result, result.calibration.rows, tmp_path), people)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_holds_integers_whose_widths_belong_to_channels(backend: str, kind: str, tmp_path: Path) -> None:
    plain = result_of(kind, INTEGER_INPUT)
    rows = made(kind)[1]
    # Not beyond 7 bits, where kernels may saturate.
    plan = planned_by_channel(plain.network, rows, range(2, 8))
    result = replace(plain, plan=plan, allocation=replace(plain.allocation, bits=tuple(plan.bits.values())))
    deployed = BACKENDS[backend](result, rows, tmp_path)
    # A packed file holds hidden channels in the order of their containers.
    held = replace(result, plan=order_for_file(result.network, plan)) if backend == "onnxruntime" else result
    people = torch.randn(2000, *result.network.input_shape, generator=torch.Generator().manual_seed(9))
    said, expected = logits(deployed[0], result, people), logits(result.module(), result, people)
    assert_holds_the_plan_and_decides(held, deployed, said, expected)
    assert ((said - expected).abs().amax(dim=1) <= 1e-3).float().mean() >= 0.999


@pytest.mark.parametrize("kind", ["mlp", "batch norm", "residual"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_two_step_input_runs_in_onnx_runtime_and_stays_in_float_elsewhere(backend: str, kind: str, tmp_path: Path) -> None:
    result = result_of(kind, TWO_STEP_INPUT)
    people = torch.randn(TEST_ROWS, 12, generator=torch.Generator().manual_seed(9))
    if backend == "onnxruntime":
        assert_agrees(result, BACKENDS[backend](result, people, tmp_path), people)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        deployed = BACKENDS[backend](result, people, tmp_path)
    if backend != "quantize_static":  # whose own warning is tested with a float input
        (sentence,) = [str(warning.message) for warning in said if "two-step" in str(warning.message)]
        assert "to_onnx" in sentence and "\n" not in sentence
    formats = (
        replace(form, bits=32, scale=1.0, zero_point=0, fine_scale=None) if form.fine_scale else form for form in result.plan.activations
    )
    in_float = replace(result, plan=replace(result.plan, activations=tuple(formats)))
    assert_agrees(in_float, deployed, people)
    said_logits, expected = (logits(run, result, people) for run in (deployed[0], result.module()))
    assert_holds_the_plan_and_decides(result, deployed, said_logits, expected)


@pytest.mark.parametrize("backend", ["onnxruntime", "quantize_static", "pt2e", "neural_compressor"])
def test_16_bit_activations_go_where_they_exist(backend: str, tmp_path: Path) -> None:
    result = result_of("mlp", Activations(16, 16))
    people = torch.randn(2000, 12, generator=torch.Generator().manual_seed(9))
    assert_agrees(result, BACKENDS[backend](result, people, tmp_path), people)


@pytest.fixture(scope="module", params=["adult", "german"])
def public(request: pytest.FixtureRequest) -> tuple[Result, torch.Tensor]:
    beside = REPOSITORY.parent / "shared" / "data"
    with pytest.MonkeyPatch.context() as patch:
        if beside.is_dir():
            patch.setenv("CFPTQ_DATA_DIR", str(beside))
        if not all(path is not None for path in locate(request.param).values()):
            pytest.skip(f"the files of {request.param} are not here; set CFPTQ_DATA_DIR")
        recipe = Recipe.load(REPOSITORY / "recipes" / f"{request.param}.yaml")
        if request.param == "adult":
            recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 1})})
        experiment = recipe.prepare(0, progress=False)
    columns = experiment.columns
    rows = [(columns.train, columns.train_labels)]
    return cfptq.calibrate(experiment.model, rows, experiment.action_set, max_rows=512, method="cf-ptq", progress=False), columns.test


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_of_public_data_go_through_every_backend(backend: str, public: tuple[Result, torch.Tensor], tmp_path: Path) -> None:
    result, people = public
    assert_agrees(result, BACKENDS[backend](result, people, tmp_path), people[:TEST_ROWS])


def test_the_prepared_model_has_the_users_layers_and_is_on_the_plans_grid() -> None:
    result = result_of("residual", INTEGER_INPUT)
    prepared = result.prepared_model()
    for layer in result.plan.layers:
        module = prepared.get_submodule(layer.name)
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, layer.weight())
    rows = torch.randn(50, 12)
    twin_in_float = result.network.with_parameters(
        {layer.name: (layer.weight(), layer.deployed_bias(result.plan.input_format(layer))) for layer in result.plan.layers}
    )
    torch.testing.assert_close(prepared(rows), twin_in_float(rows))


def test_chains_of_layers_run_in_fx_integer_kernels() -> None:
    run, _ = by_fx(result_of("mlp", INTEGER_INPUT), torch.randn(8, 12), Path())
    kernels = [type(module).__name__ for module in run.children()]
    assert kernels == ["Identity", "LinearReLU", "LinearReLU", "Linear"]
    assert type(run.get_submodule("2")).__module__.startswith("torch.ao.nn.intrinsic.quantized")


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_with_freezing_pt2e_runs_integer_kernels() -> None:
    pytest.importorskip("cfptq.backends.pt2e", exc_type=MissingDependencyError)
    import torch._inductor.config as inductor
    from torch._inductor.utils import run_and_get_code

    result = result_of("mlp", INTEGER_INPUT)
    rows = torch.randn(2000, 12, generator=torch.Generator().manual_seed(9))
    converted, _ = by_pt2e(result, rows, Path())
    with torch.no_grad(), inductor.patch(freezing=True):
        output, code = run_and_get_code(torch.compile(converted), rows)
    assert "onednn.qlinear_pointwise" in "".join(code)
    # A sum in another order rounds single activations to the next step, in 0.4 % of rows on one processor; a wrong kernel shows in all.
    apart = (output - result.module()(rows)).abs().amax(dim=1)
    assert float((apart < 1e-3).float().mean()) >= 0.99


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_model_is_refused(backend: str, tmp_path: Path) -> None:
    result, other = result_of("mlp", INTEGER_INPUT), result_of("mlp", INTEGER_INPUT, seed=1)
    if backend == "onnxruntime":
        strange = Result(other.network, result.plan, result.allocation, result.sensitivity, result.head, None, None, None)
        with pytest.raises(ModelError, match="another model"):
            strange.to_onnx(tmp_path / "model.onnx")
        return
    confused = Mixed(result, other)
    with pytest.raises(ModelError, match=r"prepared_model|prepared_onnx"):
        BACKENDS[backend](confused, torch.randn(8, 12), tmp_path)  # type: ignore[arg-type]


class Mixed:
    """One result's hand-overs, another one's prepared model."""

    def __init__(self, plan: Result, model: Result) -> None:
        self.handed, self.model = plan, model

    def __getattr__(self, name: str) -> object:
        return getattr(self.model if name.startswith("prepared") else self.handed, name)


def test_fx_that_saw_no_batch_says_so() -> None:
    from cfptq.backends import fx

    result = result_of("mlp", INTEGER_INPUT)
    observed = fx.prepare_fx(result.prepared_model(), result.qconfig_mapping(), (torch.randn(8, 12),))
    with pytest.raises(ModelError, match="run one batch"):
        fx.convert_fx(observed)


def test_fx_coverage_finds_a_layer_that_stayed_in_float() -> None:
    from cfptq.backends import fx

    result = result_of("mlp", INTEGER_INPUT)
    observed = fx.prepare_fx(result.prepared_model(), result.qconfig_mapping().set_module_name("2", None), (torch.randn(8, 12),))
    observed(torch.randn(8, 12))
    with pytest.raises(ModelError, match="left layer '2' in float"):
        fx.check_coverage(fx.convert_fx(observed), result.plan)


def test_fx_names_what_it_cannot_express() -> None:
    with pytest.raises(ModelError, match=r"16-bit activations.*activation_bits=8"):
        result_of("mlp", Activations(16, 8)).qconfig_mapping()


def test_quantize_static_says_which_layers_it_leaves_in_float(tmp_path: Path) -> None:
    result = result_of("mlp", FLOAT_INPUT)
    result.prepared_onnx(tmp_path / "prepared.onnx")
    with pytest.warns(UserWarning, match="leaves 0 in float32.*input_bits=8"):
        result.quantize_static_arguments(tmp_path / "prepared.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "prepared.onnx").read_bytes()[:100])
    with pytest.raises(FileError, match=r"cut\.onnx"):
        result.quantize_static_arguments(tmp_path / "cut.onnx")


def test_neural_compressor_tunes_over_the_configs_of_several_results() -> None:
    pytest.importorskip("cfptq.backends.neural_compressor", exc_type=MissingDependencyError)
    from neural_compressor.torch.quantization import TuningConfig, autotune

    from cfptq.backends import pt2e

    results = [result_of("mlp", INTEGER_INPUT, widths) for widths in ((2,), (4,), (8,))]
    model = results[0].network.graph
    rows = torch.randn(256, 12)
    expected = model(rows)

    def closeness(candidate: nn.Module) -> float:
        with torch.no_grad():
            return 10 - float((candidate(rows) - expected).abs().mean())

    losses = [10 - closeness(result.module()) for result in results]
    tolerable = (losses[0] + losses[1]) / 20  # 2 bits are not enough, 4 are
    configs = [result.neural_compressor_config() for result in results]
    best = autotune(model, TuningConfig(config_set=configs, tolerable_loss=tolerable, max_trials=len(configs)), closeness)
    pt2e.check_coverage(best, results[1].plan)


def test_neural_compressors_own_static_flow_keeps_narrow_layers_on_the_grid() -> None:
    pytest.importorskip("cfptq.backends.neural_compressor", exc_type=MissingDependencyError)
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, prepare

    from cfptq.backends.neural_compressor import build_static_config

    result = result_of("mlp", INTEGER_INPUT, (8, 4, 8))
    rows = torch.randn(64, 12)
    observed = prepare(
        export(result.prepared_model(), (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},)), build_static_config(result.plan)
    )
    observed(rows)
    quantized = convert(observed)
    layers = [node for node in quantized.graph.nodes if node.target == torch.ops.aten.linear.default]
    assert ["dequantize" in str(node.args[1].target) for node in layers] == [True, False, True]


def test_a_file_that_disagrees_with_the_twin_is_refused_and_the_one_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of("mlp", INTEGER_INPUT)
    file = result.onnx_model()
    bias = next(tensor for tensor in file.graph.initializer if tensor.name == "4.bias_integers")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 2**12, bias.name))
    monkeypatch.setattr(Result, "_columns_model", lambda *_, **__: file)
    (tmp_path / "model.onnx").write_bytes(b"before")
    with pytest.raises(ModelError, match=r"agree with the plan on 99\.9% of 600 rows, got 0\.00%"):
        result.to_onnx(tmp_path / "model.onnx", check=True)
    assert (tmp_path / "model.onnx").read_bytes() == b"before"


@pytest.mark.parametrize(
    ("adapter", "package", "extra"), [("pt2e", "torchao", "pt2e"), ("neural_compressor", "neural-compressor", "inc"), ("fx", "torch", None)]
)
def test_the_versions_an_adapter_was_checked_with_are_those_the_package_asks_for(adapter: str, package: str, extra: str | None) -> None:
    source = (REPOSITORY / "cfptq" / "backends" / f"{adapter}.py").read_text()
    (sentence,) = re.findall(rf"Checked with {package} [^\n]*", source)
    checked = re.findall(r"\d+\.\d+", sentence)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    (asked,) = [requirement for requirement in map(Requirement, wanted) if requirement.name == package]
    assert checked[0] in asked.specifier
    if extra is not None:
        assert f">={checked[0]}" == str(asked.specifier)  # the oldest one stands first
    try:
        installed = version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    assert asked.specifier.contains(installed.partition("+")[0])


BARE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchao", "neural_compressor") or name.startswith("torch.ao.quantization.quantize_fx"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from test_handovers import result_of, INTEGER_INPUT
result = result_of("mlp", INTEGER_INPUT)
folder = Path(sys.argv[2])
result.to_onnx(folder / "model.onnx", check=True)
result.prepared_onnx(folder / "prepared.onnx")
result.quantize_static_arguments(folder / "prepared.onnx")
result.prepared_model()(torch.zeros(2, 12))
from cfptq.errors import MissingDependencyError
mends = {"pt2e_quantizer": "cfptq[pt2e]", "neural_compressor_config": "cfptq[inc]", "qconfig_mapping": "pt2e_quantizer"}
for hand_over, mend in mends.items():
    try:
        getattr(result, hand_over)()
        raise SystemExit(f"{hand_over} worked")
    except MissingDependencyError as error:
        assert mend in str(error) and "\\n" not in str(error), error
print("done")
"""


def test_without_any_toolchain_the_onnx_path_works_and_each_missing_one_is_named(tmp_path: Path) -> None:
    code = subprocess.run(
        [sys.executable, "-c", BARE, str(Path(__file__).parent), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert code.stdout.strip().endswith("done"), code.stderr[-2000:]
