"""The command line, as its users meet it: files in, files and an exit code out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import cfptq
from cfptq import api
from cfptq.cli import app
from cfptq.experiments import Recipe, run
from cfptq.experiments.stored_networks import write_network
from cfptq.network import capture, to_onnx_model
from cfptq.pipeline.comparison import Comparison

FACTORY = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))\n"


@dataclass(frozen=True)
class Desk:
    """A folder as a user has it: a model, people, an action set."""

    folder: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def cfptq_says(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def raw_people(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"income": rng.normal(30, 8, count), "debt": rng.normal(10, 4, count), "age": rng.integers(20, 60, count)})
    frame["granted"] = (frame["income"] - 2 * frame["debt"] + rng.normal(0, 2, count) > 10).astype(int)
    return frame.assign(sex=rng.choice(["f", "m"], count))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import StandardScaler

    folder = tmp_path_factory.mktemp("desk")
    train, test = raw_people(300, 0), raw_people(60, 1)
    train.to_csv(folder / "train.csv", index=False)
    test.to_parquet(folder / "test.parquet")
    features = ["income", "debt", "age"]
    encoder = ColumnTransformer([("numbers", StandardScaler(), features)]).fit(train[features])
    actions = cfptq.ActionSet.from_frame(train[features], immutable=["age"], favourable=1, max_changes=2).encoded_by(encoder)
    actions.save(folder / "actions.yaml")
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.3, 0.3, generator=generator)
        # Units 0 and 1 carry income - debt, so that the model decides by it.
        model[0].weight[0] = torch.tensor([1.0, -1.0, 0.0])
        model[0].weight[1] = torch.tensor([-1.0, 1.0, 0.0])
        model[2].weight[:, :2] = torch.tensor([[-2.0, 2.0], [2.0, -2.0]])
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "scorer_of_tests.py").write_text(FACTORY)
    rows = actions.encode(train)
    onnx.save(to_onnx_model(capture(model.eval(), rows)), folder / "fp32.onnx")
    with torch.no_grad():
        model[2].bias += torch.tensor([1.5, -1.5])
    onnx.save(to_onnx_model(capture(model.eval(), rows)), folder / "harsh.onnx")
    return Desk(folder)


@pytest.fixture
def at_desk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """The user stands in the folder."""
    monkeypatch.chdir(desk.folder)
    yield desk
    sys.modules.pop("scorer_of_tests", None)


def desk_rows(desk: Desk) -> torch.Tensor:
    return cfptq.ActionSet.load(desk["actions.yaml"]).encode(pd.read_parquet(desk["test.parquet"]))


def audited(desk: Desk, after: str, *more: str) -> Result:
    files = ("--people", desk["test.parquet"], "--action-set", desk["actions.yaml"])
    return cfptq_says("audit", desk["fp32.onnx"], desk[after], *files, *more)


@pytest.fixture(scope="module")
def two_outputs(desk: Desk) -> Path:
    """The model's file with a second output that negates the scores."""
    model = onnx.load(desk["fp32.onnx"])
    scores = model.graph.output[0]
    model.graph.node.append(onnx.helper.make_node("Neg", [scores.name], ["against"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("against", onnx.TensorProto.FLOAT, ["N", 2]))
    onnx.save(model, desk.folder / "two.onnx")
    return desk.folder / "two.onnx"


class TestOutput:
    def test_the_output_with_the_scores_can_be_named(self, desk: Desk, two_outputs: Path, tmp_path: Path) -> None:
        files = ("--data", desk["train.csv"], "--action-set", desk["actions.yaml"], "--out", str(tmp_path / "q.onnx"))
        result = cfptq_says("calibrate", "--model", str(two_outputs), *files, "--output", "against", "--method", "ptq")
        assert result.exit_code == 0, result.stderr
        people = desk_rows(desk)
        negated = -cfptq.network.as_predictor(desk["fp32.onnx"], example=people).logits(people)
        written = cfptq.network.as_predictor(tmp_path / "q.onnx", example=people).logits(people)
        assert float((written - negated).abs().max()) < 0.2 * float(negated.abs().max())
        assert "keeps zeros and signs of the weights" in " ".join(result.stdout.split())

    @pytest.mark.parametrize("command", ["calibrate", "compare", "audit"])
    def test_an_output_that_is_not_there_is_refused_with_those_there_are(
        self, desk: Desk, two_outputs: Path, command: str, tmp_path: Path
    ) -> None:
        tables = ("--people", desk["test.parquet"]) if command == "audit" else ("--data", desk["train.csv"])
        model = (str(two_outputs), desk["fp32.onnx"]) if command == "audit" else ("--model", str(two_outputs), "--out", str(tmp_path / "q"))
        test = ("--test", desk["test.parquet"]) if command == "compare" else ()
        result = cfptq_says(command, *model, *tables, *test, "--action-set", desk["actions.yaml"], "--output", "agianst")
        assert result.exit_code == 2 and "against" in result.stderr and "agianst" in result.stderr


class TestAudit:
    def test_ends_with_0_where_every_limit_held(self, desk: Desk, tmp_path: Path) -> None:
        extras = ("--group", "sex", "--label", "granted", "--json", str(tmp_path / "r.json"))
        result = audited(desk, "fp32.onnx", "--max-vd", "0", "--max-drift", "0", *extras)
        assert result.exit_code == 0, result.stderr
        assert "Gate held" in result.stdout
        report = json.loads((tmp_path / "r.json").read_text())
        assert report["quantized"]["validity_drop"] == 0
        assert set(report["groups"]) == {"sex"}

    def test_ends_with_1_where_a_limit_is_broken_and_says_which(self, desk: Desk) -> None:
        result = audited(desk, "harsh.onnx", "--max-vd", "0.02")
        assert result.exit_code == 1, result.stderr
        assert "Gate broken" in result.stdout
        assert "breaks the limit 0.02" in result.stdout

    def test_checks_advice_already_issued(self, desk: Desk, tmp_path: Path) -> None:
        pd.read_parquet(desk["test.parquet"]).assign(income=60.0, debt=0.0).to_csv(tmp_path / "issued.csv", index=False)
        result = audited(desk, "harsh.onnx", "--issued", str(tmp_path / "issued.csv"), "--max-vd", "0")
        assert result.exit_code == 0, result.stderr
        assert "people with letters still get what they were promised" in result.stdout

    def test_proves_within_a_radius_where_asked_to(self, desk: Desk, tmp_path: Path) -> None:
        issued = ("--issued", str(tmp_path / "issued.csv"), "--json", str(tmp_path / "r.json"))
        pd.read_parquet(desk["test.parquet"]).assign(income=60.0, debt=0.0).to_csv(issued[1], index=False)
        result = audited(desk, "harsh.onnx", *issued, "--prove-within", "0.1")
        assert result.exit_code == 0, result.stderr
        found = json.loads((tmp_path / "r.json").read_text())["robustness"]
        assert found["observed"]["held"] == found["proven"]["both_within_radius"] == 1 and found["about"] == "letters"
        refused = audited(desk, "harsh.onnx", "--prove-within", "-1")
        assert refused.exit_code == 2 and "radius" in refused.stderr

    def test_a_limit_that_cannot_be_judged_is_not_reported_as_broken(self, desk: Desk, tmp_path: Path) -> None:
        rich = pd.read_parquet(desk["test.parquet"])
        lead = (rich["income"] - rich["income"].mean()) / rich["income"].std() - (rich["debt"] - rich["debt"].mean()) / rich["debt"].std()
        rich = rich.loc[lead.nlargest(8).index]
        rich.to_csv(tmp_path / "rich.csv", index=False)
        files = ("--people", str(tmp_path / "rich.csv"), "--action-set", desk["actions.yaml"])
        result = cfptq_says("audit", desk["fp32.onnx"], desk["fp32.onnx"], *files, "--max-vd", "0.1")
        assert result.exit_code == 2 and "Gate not judged." in result.stdout, result.stderr

    def test_several_models_are_each_compared_with_the_first(self, desk: Desk, tmp_path: Path) -> None:
        files = ("--people", desk["test.parquet"], "--action-set", desk["actions.yaml"], "--group", "sex")
        outputs = ("--json", str(tmp_path / "r.json"), "--junit", str(tmp_path / "r.xml"), "--csv", str(tmp_path / "people.csv"))
        models = (desk["fp32.onnx"], desk["fp32.onnx"], desk["harsh.onnx"])
        result = cfptq_says("audit", *models, *files, *outputs, "--max-disagreement", "0.02", "--level", "0.95", "--format", "md")
        assert result.exit_code == 1, result.stderr
        reports = json.loads((tmp_path / "r.json").read_text())["reports"]
        assert [report["verdict"]["outcome"] for report in reports][1] == "broken"
        assert (tmp_path / "r.xml").read_text().count("<testsuite ") == 2
        assert len(pd.read_csv(tmp_path / "people-harsh.csv")) == reports[1]["affected"]["count"]
        assert result.stdout.count("## Verdict") == 2 and "Where each figure belongs" in result.stdout

    def test_letters_are_joined_by_the_key_and_read_as_the_file_writes_numbers(self, desk: Desk, tmp_path: Path) -> None:
        people = pd.read_parquet(desk["test.parquet"])
        people = people.assign(person_id=[f"{row:05d}" for row in range(len(people))])
        people.to_csv(tmp_path / "people.csv", index=False, sep=";", decimal=",")
        letters = people[["person_id", "income"]].assign(income=60.5, debt=0.0).sample(frac=1, random_state=1)
        letters.to_csv(tmp_path / "issued.csv", index=False)
        files = ("--people", str(tmp_path / "people.csv"), "--action-set", desk["actions.yaml"], "--issued", str(tmp_path / "issued.csv"))
        result = cfptq_says("audit", desk["fp32.onnx"], desk["harsh.onnx"], *files, "--id", "person_id", "--max-vd", "0")
        assert result.exit_code == 0, result.stderr
        assert "joined to people by 'person_id'" in result.stdout and "people.csv: semicolons, decimal comma" in result.stdout
        without = cfptq_says("audit", desk["fp32.onnx"], desk["harsh.onnx"], *files)
        assert without.exit_code == 2 and "id='person_id'" in without.stderr

    @pytest.mark.parametrize(
        ("after", "more", "message"),
        [
            ("absent.onnx", (), "absent.onnx"),
            ("fp32.onnx", ("--max-group-gap", "0.1"), "needs groups"),
            ("fp32.onnx", ("--level", "95", "--max-vd", "0.1"), "level must be a confidence level"),
            ("fp32.onnx", ("--sep", ";;"), "separator must be one character"),
            ("fp32.onnx", ("--id", "person_id", "--issued", "letters.csv"), "There is no file letters.csv"),
            ("fp32.onnx", ("--max-vd", "7"), "max_vd must be a share"),
            ("fp32.onnx", ("--group", "height"), "height"),
            ("fp32.onnx", ("--issued", "absent.csv"), "There is no file absent.csv"),
        ],
    )
    def test_ends_with_2_and_one_line_where_it_could_not_run(self, desk: Desk, after: str, more: tuple[str, ...], message: str) -> None:
        result = audited(desk, after, *more)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr

    def test_an_unforeseen_error_is_not_taken_for_a_broken_limit(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        def crash(*_: object, **__: object) -> None:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(api, "audit", crash)
        assert audited(desk, "fp32.onnx").exit_code == 2

    def test_an_interruption_is_not_taken_for_a_broken_limit(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(api, "audit", interrupt)
        result = audited(desk, "fp32.onnx")
        assert (result.exit_code, result.stderr) == (130, "cfptq: interrupted.\n")


class TestCalibrate:
    def test_writes_an_onnx_file_from_a_function_and_its_state(self, at_desk: Desk, tmp_path: Path) -> None:
        model = ("--model", "scorer_of_tests:build", "--state", "model.safetensors")
        files = ("--data", "train.csv", "--action-set", "actions.yaml", "--out", str(tmp_path / "q.onnx"), "--save", str(tmp_path / "plan"))
        result = cfptq_says("calibrate", *model, *files, "--label", "granted", "--layer", "2=7", "--budget", "6")
        assert result.exit_code == 0, result.stderr
        onnx.checker.check_model(onnx.load(tmp_path / "q.onnx"))
        assert cfptq.load(tmp_path / "plan").bits["2"] == (7, 7)
        assert "KiB" in result.stdout

    def test_takes_an_onnx_file_too_and_gives_the_same_model(self, at_desk: Desk, tmp_path: Path) -> None:
        common = ("--data", "train.csv", "--action-set", "actions.yaml", "--method", "mixed-ptq", "--out")
        assert cfptq_says("calibrate", "--model", "fp32.onnx", *common, str(tmp_path / "a.onnx")).exit_code == 0
        built = ("--model", "scorer_of_tests:build", "--state", "model.safetensors")
        assert cfptq_says("calibrate", *built, *common, str(tmp_path / "b.onnx")).exit_code == 0
        kept = [
            {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer if tensor.dims}
            for path in (tmp_path / "a.onnx", tmp_path / "b.onnx")
        ]
        assert kept[0] == kept[1]

    def test_repairs_and_draws_the_curve(self, desk: Desk, tmp_path: Path) -> None:
        files = ("--data", desk["train.csv"], "--action-set", desk["actions.yaml"], "--out", str(tmp_path / "q.onnx"))
        extras = ("--repair", "--pareto", str(tmp_path / "curve.svg"), "--budget", "2", "--save", str(tmp_path / "plan"))
        result = cfptq_says("calibrate", "--model", desk["fp32.onnx"], *files, *extras)
        assert result.exit_code == 0, result.stderr
        assert "<svg" in (tmp_path / "curve.svg").read_text()
        assert "Repair (" in result.stdout
        assert cfptq.load(tmp_path / "plan").repair is not None

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--groups", "sex"), "'sex'"),
            (("--groups", "age"), "coarser groups"),
            (("--save", "nowhere/plan"), "nowhere is not a writable folder"),
            (("--save", str(Path(__file__).parent)), "it holds other files"),
            (("--pareto", "curve.doc"), "must be a .svg, .png or .pdf file"),
            (("--layer", "nolayer=8"), "no quantizable layer of that name"),
            (("--layer", "head"), "must be NAME=BITS"),
            (("--budget", "1"), "at least"),
            (("--method", "magic"), "got 'magic'"),
            (("--label", "absent"), "no column 'absent'"),
            (("--budget", "4", "--max-validity-drop", "0.1"), "not both"),
        ],
    )
    def test_refuses_in_one_line_and_writes_nothing(self, desk: Desk, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
        files = ("--data", desk["train.csv"], "--action-set", desk["actions.yaml"], "--out", str(tmp_path / "q.onnx"))
        result = cfptq_says("calibrate", "--model", desk["fp32.onnx"], *files, *more)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("more", [("--save", str(Path(__file__).parent)), ("--save", "nowhere/plan"), ("--pareto", "curve.doc")])
    def test_refuses_places_it_could_not_write_before_it_reads_anything(self, tmp_path: Path, more: tuple[str, ...]) -> None:
        absent = ("--model", "absent.onnx", "--data", "absent.csv", "--action-set", "absent.yaml", "--out", str(tmp_path / "q.onnx"))
        result = cfptq_says("calibrate", *absent, *more)
        assert result.exit_code == 2 and more[1] in result.stderr and "absent" not in result.stderr


class TestQat:
    def test_trains_keeps_a_log_and_says_what_was_kept(self, at_desk: Desk, tmp_path: Path) -> None:
        files = ("--data", "train.csv", "--action-set", "actions.yaml", "--out", str(tmp_path / "q.onnx"), "--save", str(tmp_path / "plan"))
        extras = ("--label", "granted", "--method", "distil-quant", "--log", str(tmp_path / "log.csv"), "--layer", "2=7", "--budget", "6")
        again = ("--checkpoint", str(tmp_path / "run.safetensors"))
        shown = []
        for _ in range(2):  # the second goes on from the first one's last epoch
            result = cfptq_says("qat", "--model", "fp32.onnx", *files, *extras, *again)
            assert result.exit_code == 0, result.stderr
            shown.append(result.stdout)
        assert shown[0] == shown[1] and "Training: " in shown[0] and "favourable rate" in shown[0]
        onnx.checker.check_model(onnx.load(tmp_path / "q.onnx"))
        loaded = cfptq.load(tmp_path / "plan")
        assert loaded.training is not None and len(pd.read_csv(tmp_path / "log.csv")) == len(loaded.training.epochs)
        assert list(loaded.bits.values()) == [4, 7]

    def test_a_method_it_does_not_know_is_one_line(self, at_desk: Desk, tmp_path: Path) -> None:
        files = ("--data", "train.csv", "--action-set", "actions.yaml", "--out", str(tmp_path / "q.onnx"))
        result = cfptq_says("qat", "--model", "fp32.onnx", *files, "--method", "magic")
        assert result.exit_code == 2 and "cfq-qat" in result.stderr and len(result.stderr.splitlines()) == 1


class TestCompare:
    def test_writes_results_timings_and_the_files_compared(self, desk: Desk, tmp_path: Path) -> None:
        out = tmp_path / "made" / "here"
        files = ("--data", desk["train.csv"], "--test", desk["test.parquet"], "--action-set", desk["actions.yaml"])
        choice = ("--method", "ort-int8", "--method", "cf-ptq", "--budget", "5", "--group", "sex", "--label", "granted")
        result = cfptq_says("compare", "--model", desk["fp32.onnx"], *files, *choice, "--out", str(out))
        assert result.exit_code == 0, result.stderr
        results = json.loads((out / "results.json").read_text())
        assert set(results["methods"]) == {"ort-int8", "cf-ptq"}
        assert set(results["budgets"]) == {"5.0"}
        assert set(results["methods"]["cf-ptq"]["groups"]) == {"sex"}
        assert results["fp32"]["accuracy"] > 0.5
        assert (out / "timings.json").is_file()
        assert {path.name for path in out.glob("*.onnx")} == {"ort-int8.onnx", "cf-ptq-5.onnx"}


RECIPE = """\
schema: 1
dataset: synthetic
actions: {immutable: [age, sex], max_changes: 3}
model: {kind: mlp, hidden: [8]}
training: {epochs: 2}
calibration: {rows: 128}
budgets: [4]
methods: [mixed-ptq]
seeds: [0, 1]
"""


class TestRun:
    @pytest.mark.parametrize(("more", "folders"), [((), {0: "seed-0", 1: "seed-1"}), (("--seed", "1"), {1: "."})])
    def test_a_recipe_is_run_for_each_seed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], folders: dict[int, str]
    ) -> None:
        def measured(*arguments: Any, **_: object) -> Comparison:
            methods, settings = arguments[4], arguments[6]
            accuracy = {"accuracy": settings.max_rows}
            return Comparison("synthetic", settings.seed, accuracy, {"4.0": {name: {} for name in methods}}, "4.0")

        monkeypatch.setattr(run, "compare_methods", measured)
        (tmp_path / "small.yaml").write_text(RECIPE)
        result = cfptq_says("run", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out"), *more)
        assert result.exit_code == 0, result.stderr
        found = {
            path.relative_to(tmp_path / "out").parent.as_posix(): json.loads(path.read_text()) for path in tmp_path.rglob("results.json")
        }
        assert {results["seed"]: folder for folder, results in found.items()} == folders
        for results in found.values():
            assert results["fp32"]["accuracy"] == 128
            assert set(results["methods"]) == {"mixed-ptq"}

    def test_it_reads_stored_networks_and_says_where_it_trains(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def measured(*arguments: Any, **_: object) -> Comparison:
            return Comparison("synthetic", arguments[6].seed, {}, {"4.0": {}}, "4.0")

        monkeypatch.setattr(run, "compare_methods", measured)
        path = tmp_path / "small.yaml"
        path.write_text(RECIPE + "networks: stored\n")
        recipe = Recipe.load(path)
        trained = recipe.prepare(0, train=True, progress=False)
        digest = write_network(tmp_path / "stored", trained.model, recipe.describe_network(trained.columns, 0), trained.training)

        def origin(*more: str) -> tuple[dict[str, str], str]:
            result = cfptq_says("run", str(path), "--out", str(tmp_path / "out"), *more)
            assert result.exit_code == 0, result.stderr
            return json.loads((tmp_path / "out" / "results.json").read_text())["network"], " ".join(result.stdout.split())

        assert origin("--seed", "0")[0] == {"source": "read", "sha256": digest}
        assert origin("--seed", "0", "--train")[0] == {"source": "trained", "sha256": digest}
        network, told = origin("--seed", "1")
        assert network["source"] == "trained" and network["sha256"] != digest
        assert "no network of synthetic for seed 1" in network["note"] and network["note"] in told

        path.write_text(path.read_text().replace("[8]", "[9]"))
        refused = cfptq_says("run", str(path), "--out", str(tmp_path / "out"), "--seed", "0")
        assert refused.exit_code == 2 and "does not fit" in refused.stderr

    def test_a_recipe_that_makes_no_sense_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "odd.yaml").write_text(RECIPE.replace("budgets", "bugdets"))
        result = cfptq_says("run", str(tmp_path / "odd.yaml"), "--out", str(tmp_path / "out"))
        assert result.exit_code == 2
        assert "bugdets" in result.stderr
        assert not (tmp_path / "out").exists()


class TestDatasets:
    def test_shows_where_each_file_lies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CFPTQ_DATA_DIR", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "german").mkdir()
        (tmp_path / "german" / "german.data").write_text("")
        result = cfptq_says("datasets", "german", "adult", "synthetic")
        assert result.exit_code == 0
        assert result.stdout.splitlines()[0].split() == ["german", "german.data", str(tmp_path / "german" / "german.data")]
        assert result.stdout.count("missing") == 2
        assert "generated" in result.stdout

    def test_an_unknown_name_is_refused(self) -> None:
        result = cfptq_says("datasets", "iris")
        assert result.exit_code == 2
        assert "got 'iris'" in result.stderr


def test_the_quickstart_leaves_all_that_the_audit_it_proposes_needs(tmp_path: Path) -> None:
    out = tmp_path / "first"
    result = cfptq_says("quickstart", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert "SYNTHETIC" in result.stdout
    assert len(result.stdout.splitlines()) <= 25
    assert all((out / name).is_file() for name in ("results.json", "timings.json", "comparison.txt") if name in result.stdout)
    results = json.loads((out / "results.json").read_text())
    assert set(results["methods"]) | set(results.get("unavailable", {})) == set(api.COMPARED)
    proposed = result.stdout.replace("\\\n", " ").split("  cfptq ")[-1].split()
    assert cfptq_says(*proposed).exit_code == 0


def test_the_version_is_printed() -> None:
    assert cfptq_says("--version").stdout.strip() == cfptq.__version__


def test_help_names_every_command() -> None:
    shown = cfptq_says("--help").stdout
    for command in ("quickstart", "run", "calibrate", "qat", "compare", "audit", "datasets"):
        assert command in shown
