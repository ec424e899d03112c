"""``python -m cfptq``: the same as the ``cfptq`` command."""

from cfptq.cli import app

app(prog_name="cfptq")
