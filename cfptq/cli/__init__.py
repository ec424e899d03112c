"""The ``cfptq`` command line."""

from cfptq.cli.commands import app

__all__ = ["app"]
