"""What ``import cfptq`` costs and offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cfptq

HEAVY = ("torch", "pandas", "onnx", "onnxruntime", "onnxscript", "sklearn", "scipy", "pyarrow", "numpy", "pydantic", "rich", "typer")
OPTIONAL = ("torchao", "neural_compressor", "jinja2", "matplotlib")


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter by ``statement``."""
    program = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_anything_else_that_is_slow() -> None:
    assert modules_after("import cfptq; cfptq.errors, cfptq.CfptqError, cfptq.__version__, dir(cfptq)").isdisjoint(HEAVY + OPTIONAL)


def test_no_public_name_needs_an_optional_toolchain() -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    absent = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"
    loaded = modules_after(f"{absent}\nimport cfptq\nfor name in cfptq.__all__: getattr(cfptq, name)")
    assert "torch" in loaded


def test_the_command_line_shows_its_help_without_torch() -> None:
    assert modules_after("import cfptq.cli").isdisjoint({"torch", "pandas", "onnx", "onnxruntime", "sklearn", "scipy", *OPTIONAL})


def test_every_public_name_is_listed_and_can_be_had() -> None:
    assert set(cfptq.__all__) <= set(dir(cfptq))
    for name in cfptq.__all__:
        assert getattr(cfptq, name) is not None


def test_a_public_function_is_not_hidden_by_a_module_of_its_name() -> None:
    for name in ("calibrate", "compare", "audit", "load"):
        assert callable(getattr(cfptq, name)), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'calibrat'"):
        _ = cfptq.calibrat  # type: ignore[attr-defined]
