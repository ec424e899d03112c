"""Checks of the arguments of public functions, made before any work."""

from __future__ import annotations

import functools
import inspect
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import numpy as np

from cfptq.errors import CfptqError, ConfigurationError, FileError
from cfptq.io.suggestions import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Argument:
    """Accepted values of an argument.

    Attributes:
        accepts: tells whether a value other than None is accepted.
        words: what is accepted, as it follows "must be".
        is_optional: None is accepted too.
        error: class of the error for any other value.
        names: names that are accepted as text, of which a similar one is suggested.
        advice: a sentence that says what to do.
    """

    accepts: Callable[[Any], bool]
    words: str
    is_optional: bool = False
    error: type[CfptqError] = ConfigurationError
    names: tuple[str, ...] = ()
    advice: str = ""

    def check(self, name: str, value: object) -> None:
        """Check the value of the argument ``name``.

        Raises:
            CfptqError: the value is not accepted. The error is of the class ``error``.
        """
        if value is None and self.is_optional:
            return
        if value is not None and self.accepts(value):
            return
        hint = did_you_mean(value, self.names) if isinstance(value, str) else ""
        alternative = ", or None" if self.is_optional else ""
        advice = f" {self.advice}" if self.advice else ""
        raise self.error(f"{name} must be {self.words}{alternative}, got {describe_value(value)}{hint}.{advice}")


def optional(argument: Argument) -> Argument:
    """Return the same argument, which may be None too."""
    return replace(argument, is_optional=True)


def describe_value(value: object) -> str:
    """Return a plain value as it is written, and anything else by its type."""
    if value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        return reprlib.repr(value)
    shown = f" {reprlib.repr(value)}" if isinstance(value, list | tuple | dict | set) else ""
    return f"a {type(value).__name__}{shown}"


def check_arguments(**accepted: Argument) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks the arguments of a function before its body runs.

    Args:
        accepted: name of a parameter -> what it may be. Other parameters are left to the function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, value in _bind(signature, function.__name__, args, kwargs).items():
                if name in accepted:
                    accepted[name].check(name, value)
            return function(*args, **kwargs)

        return run

    return decorate


def _bind(signature: inspect.Signature, function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the given arguments by name.

    Raises:
        ConfigurationError: an argument is missing, unknown or given twice.
    """
    known = [name for name in signature.parameters if name not in ("self", "cls")]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        for name in kwargs:
            if name not in signature.parameters:
                raise ConfigurationError(f"{function} has no argument {name!r}{did_you_mean(name, known)}. It has {', '.join(known)}.")
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ConfigurationError(f"{function} is called wrongly: {error}. Its arguments are {', '.join(known)}.") from error


def whole_number(least: int | None = None, most: int | None = None) -> Argument:
    """Return an argument that is a whole number from ``least`` to ``most``."""
    low, high = -math.inf if least is None else least, math.inf if most is None else most
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"

    def accepts(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high

    return Argument(accepts, f"a whole number{bounds}")


def is_number(value: object) -> bool:
    """Return whether ``value`` is a real number that float64 can hold. A whole number of 400 digits is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_finite_number(value: object) -> bool:
    """Return whether ``value`` is a real number that float64 can hold, and neither NaN nor infinite."""
    return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]


def number(words: str = "a finite number", is_valid: Callable[[float], bool] = math.isfinite) -> Argument:
    """Return an argument that is a number for which ``is_valid`` is true."""

    def accepts(value: Any) -> bool:
        return is_number(value) and is_valid(float(value))

    return Argument(accepts, words)


def share() -> Argument:
    """Return an argument that is a share from 0 to 1."""
    return number("a share from 0 to 1", lambda value: 0 <= value <= 1)


def one_of(names: Iterable[str], words: str = "", *, accepts: Callable[[Any], bool] = lambda value: False) -> Argument:
    """Return an argument that is one of ``names``, or anything that ``accepts`` accepts."""
    known = tuple(names)
    listed = words or f"one of {', '.join(map(repr, known))}"
    return Argument(lambda value: accepts(value) or (isinstance(value, str) and value in known), listed, names=known)


def instance_of(kinds: type | tuple[type, ...], words: str, *, error: type[CfptqError] = ConfigurationError, advice: str = "") -> Argument:
    """Return an argument that is of one of the types ``kinds``."""
    return Argument(lambda value: isinstance(value, kinds), words, error=error, advice=advice)


def is_path(value: object) -> bool:
    """Tell whether ``value`` can be the path of a file or folder."""
    return isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str) and "\0" not in os.fspath(value)


#: Arguments that many functions have.
BOOLEAN = instance_of((bool, np.bool_), "True or False")
TEXT = instance_of(str, "text")
COUNT = whole_number(least=1)
SEED = whole_number(0, 2**32 - 1)
PATH = Argument(is_path, "the path of a file or folder, as text or a pathlib.Path", error=FileError)
