"""Imports point one way: a package may use only what stands below it, and no two modules import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cfptq"


def documented_order() -> tuple[tuple[str, ...], ...]:
    """The import order in docs/architecture.md, lowest first. Packages in one tuple stand side by side."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.split("```text\n", 1)[1].split("```", 1)[0]
    return (*(tuple(line.split()) for line in reversed(block.splitlines())), ("__main__",))


LAYERS = documented_order()
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

#: Modules that may stand directly below cfptq/.
LOOSE = {"__init__", "__main__", "api", "errors", "testing"}

#: Packages that are not among the dependencies, and who may name them.
OPTIONAL = {
    "torchao": ("backends",),
    "neural_compressor": ("backends",),
    "accelerate": ("backends",),
    "jinja2": ("auditing",),
    "matplotlib": ("auditing", "pipeline"),
    "lightning": ("training",),
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
    found = []
    for line, name in imported(source, package_of(path)):
        parts = name.split(".")
        if parts[0] in OPTIONAL and own not in OPTIONAL[parts[0]]:
            found.append(f"line {line}: {name} belongs in {' and '.join(OPTIONAL[parts[0]])} alone")
        if parts[0] != "cfptq" or parts[1:2] == [own] or parts[1:2] == ["__version__"]:
            continue
        target = parts[1] if len(parts) > 1 else "cfptq"
        if target not in RANK:
            found.append(f"line {line}: {name} goes through the top-level package; import it from its own")
        elif RANK[target] >= RANK[own]:
            found.append(f"line {line}: {own} must not import {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_below_its_own(path: Path) -> None:
    assert home(path) in RANK, f"{home(path)} has no place in the order of layers"
    assert violations(path, path.read_text(encoding="utf-8")) == []


def test_only_the_front_door_stands_directly_below_the_package() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= LOOSE
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages | (LOOSE - {"__init__"}) == set(RANK)


def module_name(path: Path) -> str:
    parts = ("cfptq", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_within_packages() -> dict[str, set[str]]:
    """Module -> modules of its own package that it imports, deferred and type-checking imports included."""
    names = {module_name(path) for path in MODULES}
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        own = module_name(path)
        edges[own] = set()
        for _, name in imported(path.read_text(encoding="utf-8"), package_of(path)):
            if name.split(".")[:2] == own.split(".")[:2]:
                # ``from a.b import c`` names a module c of a.b, or something that a.b defines.
                target = name if name in names else name.rpartition(".")[0]
                edges[own].add(target)
    return {own: {target for target in targets if target in names and target != own} for own, targets in edges.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(imports_within_packages()) == []


def test_the_check_itself_sees_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


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
