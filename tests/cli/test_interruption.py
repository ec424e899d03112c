"""Ctrl-C ends in one line and exit code 130."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Sends SIGINT to itself when the module of that name is imported.
PROGRAM = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from cfptq.__main__ import main
sys.argv = ["cfptq", "datasets", "german"]
main()
"""


@pytest.mark.parametrize("name", ["cfptq.cli", "typer", "cfptq.cli.outputs", "pandas"])
def test_an_interrupted_import_ends_in_one_line(name: str) -> None:
    finished = subprocess.run([sys.executable, "-c", PROGRAM.format(name=name)], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (130, "cfptq: interrupted.\n")


@pytest.mark.parametrize(
    "command",
    [
        "raise KeyboardInterrupt",
        "os.kill(os.getpid(), signal.SIGINT)",
        """
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise RuntimeError("a library's own error")
""",
    ],
)
def test_an_interrupted_command_ends_in_one_line(command: str) -> None:
    program = f"""
import os, signal, sys
from cfptq.cli import commands

@commands.app.command()
@commands.report_errors
def wait():
    {command}

from cfptq.__main__ import main
sys.argv = ["cfptq", "wait"]
main()
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (130, "cfptq: interrupted.\n")


def test_other_commands_end_as_before() -> None:
    finished = subprocess.run([sys.executable, "-m", "cfptq", "--version"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0 and finished.stderr == ""
