"""Suppression of the exporters' warnings, logs and prints."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

#: Loggers that report missing packages, deprecated internals, and the whole graph before an error that cfptq reports itself.
_LOGGERS = ("torch.export", "torch.fx", "torch.onnx", "torch._dynamo", "torch._functorch", "onnxscript", "onnx_ir")


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Suppress warnings, log records and prints of exporters inside the block.

    Errors are raised as usual. Log levels and warning filters are restored on exit.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    names = [name for name in logging.Logger.manager.loggerDict if name.startswith(tuple(f"{name}." for name in _LOGGERS))]
    loggers += [logger for logger in map(logging.getLogger, names) if logger.level != logging.NOTSET]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
