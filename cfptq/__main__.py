"""Entry point of ``cfptq`` and ``python -m cfptq``.

It imports nothing slow before Ctrl-C is handled.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

#: Exit code of an interrupted command, 128 + SIGINT.
INTERRUPTED = 130


class _Interruptions:
    """Handler of SIGINT that remembers whether the signal came."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        """Raise ``KeyboardInterrupt``, or end at once inside an import.

        An import that is interrupted by an exception may swallow it, or end in another error from extension code. Nothing needs to be
        cleaned up there.
        """
        self.received = True
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os.write(2, b"cfptq: interrupted.\n")
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line, and end with one line and exit code 130 on Ctrl-C."""
    interruptions = _Interruptions()
    signal.signal(signal.SIGINT, interruptions)
    try:
        from cfptq.cli import app

        app(prog_name="cfptq")
    except KeyboardInterrupt:
        print("cfptq: interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit:
        if interruptions.received:
            sys.exit(INTERRUPTED)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
