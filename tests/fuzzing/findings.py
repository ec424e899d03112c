"""How a fuzzing test runs, collects what it finds and lists it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from cfptq.errors import CfptqError

#: Examples of each test in a run by hand; without it, a test has its own small number.
EXAMPLES = os.environ.get("CFPTQ_FUZZ_EXAMPLES")
#: Seconds of the processor, and seconds on the clock, after which an example counts as a hang.
MAX_SECONDS, MAX_WAIT = 30, 600
#: Events of Python that reading a file must never cause.
FORBIDDEN_EVENTS = frozenset(("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"))


@dataclass
class Findings:
    """Faults by kind (the error and the place that raised it), with the first example of each.

    Attributes:
        tried: examples that were run.
        refused: examples that ended in a CfptqError.
        faults: kind -> (number of examples, first example, its error).
    """

    tried: int = 0
    refused: int = 0
    faults: dict[str, tuple[int, str, str]] = field(default_factory=dict)

    def run(self, example: Any, check: Callable[[Any], None]) -> None:
        """Run one example, which may end in a CfptqError or in a right result."""
        self.tried += 1
        try:
            with limit_time(), forbid_events(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(example)
        except CfptqError as error:
            self.refused += 1
            if not str(error).strip() or len(str(error)) > 20_000:
                self._add(f"message of {len(str(error))} characters", example, error)
        except (Exception, NoEnd) as error:
            self._add(f"{type(error).__name__} at {_find_place(error)}", example, error)

    def _add(self, kind: str, example: Any, error: BaseException) -> None:
        count, first, said = self.faults.get(kind, (0, repr(example), str(error)[:600]))
        self.faults[kind] = count + 1, first, said

    def __str__(self) -> str:
        lines = [f"{self.tried} examples, {self.refused} refused, {len(self.faults)} kinds of fault"]
        for kind, (count, example, said) in sorted(self.faults.items(), key=lambda item: -item[1][0]):
            lines += [f"{kind}, {count} examples", f"    {said}", f"    {example}"]
        return "\n".join(lines)


def fuzz(examples: SearchStrategy[Any], check: Callable[[Any], None], count: int, kept: tuple[Any, ...] = ()) -> Findings:
    """Run ``check`` on kept and on drawn examples, always the same ones, and return what was found."""
    found = Findings()
    for example in kept:
        found.run(example, check)

    @settings(max_examples=int(EXAMPLES or count), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(examples)
    def run(example: Any) -> None:
        found.run(example, check)

    run()
    if EXAMPLES:
        print(found, file=sys.__stderr__)
    return found


class NoEnd(BaseException):
    """An example that takes too long. The library cannot mistake it for an error of its own."""


@contextmanager
def limit_time() -> Iterator[None]:
    """Raise ``NoEnd`` in a block that computes or waits for too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise NoEnd(f"no end after {MAX_SECONDS} seconds of work or {MAX_WAIT} seconds")

    signals = ((signal.SIGVTALRM, signal.ITIMER_VIRTUAL, MAX_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, MAX_WAIT))
    before = [signal.signal(number, stop) for number, _, _ in signals]
    for _, timer, seconds in signals:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(signals, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


_is_watching = False
_seen: list[str] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _is_watching and event in FORBIDDEN_EVENTS:
        _seen.append(event)


sys.addaudithook(_hear)


@contextmanager
def forbid_events() -> Iterator[None]:
    """Fail where a block unpickles, starts a process or opens a connection."""
    global _is_watching
    _seen.clear()
    _is_watching = True
    try:
        yield
    finally:
        _is_watching = False
    assert not _seen, f"reading caused {sorted(set(_seen))}"


def _find_place(error: BaseException) -> str:
    """Return the innermost line of cfptq, or else of a test, that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/cfptq/" in frame.filename and "/tests/" not in frame.filename]
    frame = (own or frames)[-1]
    if isinstance(error, AssertionError):
        frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
