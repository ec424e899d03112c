"""Imports point one way: a package may use only what stands before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cfptq"

#: Lowest first. Packages in one tuple stand side by side.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("io", "network", "metrics"),
    ("actions", "quantize", "datasets", "models"),
    ("recourse", "allocation", "backends"),
    ("calibration", "training", "auditing"),
    ("pipeline",),
    ("api", "experiments"),
    ("testing",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

#: Imports between packages that stand side by side, module -> what it still imports.
STILL_BESIDE = {"experiments/run.py": "cfptq.api"}

#: Toolchains that are not among the dependencies; only a backend (or an optional report) may name them.
OPTIONAL = {
    "torchao": "backends",
    "neural_compressor": "backends",
    "accelerate": "backends",
    "jinja2": "auditing",
    "plotly": "auditing",
    "matplotlib": "pipeline",
    "lightning": "training",
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def home(path: Path) -> str:
    """The package or module directly below cfptq/ that ``path`` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in ``source``, functions and type-checking blocks included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"


def package_of(path: Path) -> tuple[str, ...]:
    return ("cfptq", *path.relative_to(PACKAGE).parent.parts)


def violations(path: Path, source: str) -> list[str]:
    own = home(path)
    tolerated = STILL_BESIDE.get(path.relative_to(PACKAGE).as_posix())
    found = []
    for line, name in imported(source, package_of(path)):
        parts = name.split(".")
        if parts[0] in OPTIONAL and OPTIONAL[parts[0]] != own:
            found.append(f"line {line}: {name} belongs in cfptq/{OPTIONAL[parts[0]]} alone")
        if parts[0] != "cfptq" or parts[1:2] == [own] or parts[1:2] == ["__version__"]:
            continue
        target = parts[1] if len(parts) > 1 else "cfptq"
        if target not in RANK:
            found.append(f"line {line}: {name} goes through the top-level package; import it from its own")
        elif RANK[target] >= RANK[own] and not (tolerated and f"{name}.".startswith(f"{tolerated}.")):
            found.append(f"line {line}: {own} must not import {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_below_its_own(path: Path) -> None:
    assert home(path) in RANK, f"{home(path)} has no place in the order of layers"
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("network/graph.py", "from cfptq.actions import ActionSet"),
        ("network/graph.py", "def late():\n    import cfptq.api"),
        ("network/graph.py", "from ..quantize import plan"),
        ("network/graph.py", "from cfptq import calibrate"),
        ("backends/pt2e.py", "from cfptq.allocation import Budget"),
        ("training/trainer.py", "from cfptq.auditing import AuditReport"),
        ("quantize/plan.py", "import torchao.quantization"),
    ],
)
def test_the_check_itself_sees_a_wrong_import(module: str, source: str) -> None:
    assert violations(PACKAGE / module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("network/graph.py", "from .batch_norm import fold"),
        ("backends/pt2e.py", "import torchao\nfrom cfptq.quantize import QuantizationPlan"),
        ("api.py", "from cfptq import __version__, errors"),
    ],
)
def test_the_check_itself_lets_a_right_import_pass(module: str, source: str) -> None:
    assert violations(PACKAGE / module, source) == []
