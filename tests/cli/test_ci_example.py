"""The commands of the page on CI run as they stand, the workflow's too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from cfptq.cli import app
from cfptq.network import capture, to_onnx_model
from cfptq.testing import small_action_set, small_people

PAGE = (Path(__file__).parents[2] / "docs" / "audit-in-ci.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^cfptq audit .*$", PAGE, re.MULTILINE)
WORKFLOW = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
STEPS = [step["run"] for step in WORKFLOW["jobs"]["audit"]["steps"] if "cfptq audit" in step.get("run", "")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page names, with two models that are the same."""
    actions, people = small_action_set(), small_people(60)
    rows = actions.encode(people)
    model = nn.Linear(rows.shape[1], 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * rows.shape[1], [0.0, 1.0, -1.0, 0.0, 0.5, 0.0]]))
        model.bias.zero_()
    for name in ("fp32.onnx", "model.onnx"):
        onnx.save(to_onnx_model(capture(model, rows)), tmp_path / name)
    actions.save(tmp_path / "actions.yaml")
    keyed = people.assign(person_id=range(1000, 1060))
    keyed.to_csv(tmp_path / "people.csv", index=False)
    keyed.assign(debt=0.5, income=people["income"].max()).to_csv(tmp_path / "letters.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 3 and len(STEPS) == 1


@pytest.mark.parametrize("command", [*COMMANDS, *STEPS])
def test_a_command_of_the_page_runs_and_writes_its_files(command: str, folder: Path) -> None:
    if "--html" in command:
        pytest.importorskip("jinja2", reason="HTML reports need jinja2")
    words = shlex.split(command)[1:]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == (0 if "--level" not in words else 1), result.output
    for option in ("--html", "--json", "--junit", "--plots"):
        if option in words:
            assert (folder / words[words.index(option) + 1]).exists()
