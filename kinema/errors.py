"""Every error Kinema raises on purpose. One tree, each also a standard exception."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class KinemaError(Exception):
    """Root of the tree; the command line shows its message without a traceback."""


class InputError(KinemaError, ValueError):
    """An argument is not acceptable. The message names it, what was given and what would be accepted."""


class NotFinite(KinemaError, ArithmeticError):
    """A computation produced NaN or infinity. The message names the step and the last good state."""


class BudgetExhausted(KinemaError):
    """A limit on work (events, network evaluations, reward calls) was reached before the result."""


class StoreCorrupt(KinemaError, OSError):
    """Stored data is damaged, truncated or changed since it was written. The message names the damaged part."""


class MissingExtra(KinemaError, ImportError):
    """An optional dependency is not installed. The message names the extra that brings it."""


def choose(options: Mapping[str, T], name: str, what: str) -> T:
    """`options[name]`, or an error that suggests the nearest names.

    Raises:
        InputError: `name` is not among `options`.
    """
    if name in options:
        return options[name]
    raise InputError(unknown(what, name, options))


def unknown(what: str, name: str, options: Iterable[str]) -> str:
    """The sentence for a name that is not among `options`."""
    names = sorted(options)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what} {name!r}{hint} Known: {', '.join(names)}"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.split(".", maxsplit=1)[0]
        raise MissingExtra(f"{name} is not installed; pip install 'kinema[{extra}]' brings it") from error
