"""The ``cfptq`` command."""

from cfptq.cli.commands import app

__all__ = ["app"]
