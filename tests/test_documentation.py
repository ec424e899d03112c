"""Code in the README and in the documentation runs as it stands, and the notebook of the recipes runs from start to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cfptq
from cfptq import datasets
from cfptq.actions import ActionSet
from cfptq.network import capture, to_onnx_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "recipes").glob("*.ipynb"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

#: Pages whose blocks train, which takes longer than a page may: a short schedule stands in for the default one.
SHORT_TRAINING = "result = cfptq.qat(model, train_loader, action_set, budget=4.0"


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture
def names(people: datasets.Dataset, columns: datasets.Columns, action_set: ActionSet, model: nn.Module, tmp_path: Path) -> dict[str, Any]:
    """What a page takes for granted: a model with its rows, people and action set, and the two files that an audit compares."""
    loader = [(columns.train[:400], columns.train_labels[:400])]
    network = capture(model, columns.train[:2])
    (tmp_path / "fp32.onnx").write_bytes(to_onnx_model(network).SerializeToString())
    result = cfptq.calibrate(model, loader, action_set, budget=8.0, progress=False)
    result.to_onnx(tmp_path / "model.onnx")
    return {
        "cfptq": cfptq,
        "people": people.test.head(300).reset_index(drop=True),
        "model": model,
        "calib_loader": loader,
        "train_loader": loader,
        "test_loader": [(columns.test[:300], columns.test_labels[:300])],
        "action_set": action_set,
        "column_transformer": columns.encoder,
        "result": result,
        "example": columns.train[:4],
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_code_in_a_page_runs(page: Path, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for number, code in enumerate(blocks(page)):
        if SHORT_TRAINING in code:
            code = code.replace("budget=4.0", "budget=4.0, method='distil-quant', calibration_rows=200, progress=False")
        exec(compile(code, f"{page.name}, block {number + 1}", "exec"), names)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_was_saved_with_its_output(path: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells) and any(cell["outputs"] for cell in cells)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
