"""The first lines of docstrings can be read by anybody who knows the field (CONTRIBUTING.md, "Style")."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cfptq"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Cross references such as :func:`name` hold colons that are no punctuation.
REFERENCE = re.compile(r":[a-z]+:`[^`]*`|``[^`]*``")
QUESTION = re.compile(r"(What|How|Whether|Where|Why|Who)\b")


def faults(source: str) -> Iterator[str]:
    """Lines of ``source`` at which a docstring's first line is not one plain sentence or noun phrase."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            plain = REFERENCE.sub("", first)
            if ":" in plain or ";" in plain or QUESTION.match(plain):
                yield f"line {getattr(node, 'lineno', 1)}: {first}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_plain_line(path: Path) -> None:
    assert list(faults(path.read_text(encoding="utf-8"))) == []


def test_the_check_itself_sees_a_fault_and_lets_references_pass() -> None:
    assert list(faults('def f():\n    """What happened."""')) and list(faults('"""Rows: people."""'))
    assert not list(faults('def f():\n    """Return what :func:`cfptq.load` gives."""'))
