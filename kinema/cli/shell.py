"""The edges of every command: errors as one line and an exit code, where output may go, what is printed meanwhile."""

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kinema.errors import InputError, KinemaError

if TYPE_CHECKING:
    from rich.console import Console

USAGE, FAILED, INTERRUPTED = 2, 3, 130
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@contextlib.contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Turn what goes wrong into one red line on standard error and an exit code; `debug` lets the traceback through."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if debug:
            raise
        tell(f"stopped{f': {stop}' if str(stop) else ''}", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    except (KinemaError, OSError, MemoryError) as error:
        if debug or getattr(error, "errno", None) == errno.EPIPE:
            raise
        tell(f"error: {_sentence(error)}", style="bold red")
        raise typer.Exit(USAGE if isinstance(error, InputError) else FAILED) from None
    except RuntimeError as error:
        # numeric failure inside compiled code (equinox.error_if); Typer's own Exit is a RuntimeError too
        equinox = sys.modules.get("equinox")
        if debug or equinox is None or not isinstance(error, equinox.EquinoxRuntimeError):
            raise
        tell(f"error: {_sentence(error)}", style="bold red")
        raise typer.Exit(FAILED) from None


def tell(message: str, *, style: str = "") -> None:
    """One line for people, on standard error."""
    _console(sys.stderr).print(message, style=style, markup=False, highlight=False, soft_wrap=True)


def show(thing: Any) -> None:
    """A result, on standard output: text or anything Rich can draw."""
    plain = isinstance(thing, str)
    _console(sys.stdout).print(thing, markup=False, highlight=False, soft_wrap=plain)


def show_json(value: Any) -> None:
    """A result for a script: one JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def done(path: Path, what: str, started: float, *, as_json: bool, **facts: Any) -> None:
    """The last word of a verb that wrote `path`; `facts` go into the JSON."""
    seconds = time.perf_counter() - started
    if as_json:
        show_json({"path": str(path), **facts, "seconds": round(seconds, 3)})
    else:
        show(f"{path}: {what} ({seconds:.1f} s)")


@contextlib.contextmanager
def bar(name: str, total: int) -> Iterator[Any]:
    """A progress bar on standard error; what it yields is called with the work done. Silent where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda completed: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(sys.stderr)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda completed: progress.update(task, completed=completed)


def free_file(path: Path, *, overwrite: bool, endings: Sequence[str]) -> Path:
    """`path`, if output may go there; its parent folders are created.

    Raises:
        InputError: another ending, something there already, or a folder that cannot be written.
    """
    if path.suffix not in endings:
        raise InputError(f"--out must end in {' or '.join(endings)}, got {str(path)!r}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; --overwrite replaces it")
    make_folder(path.parent)
    return path


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool, resume: bool, ours: Sequence[str]) -> Iterator[None]:
    """A folder to write into. An old one steps aside, for good unless the work inside is refused (`InputError`).

    Only a folder that holds nothing but `ours`, entries that Kinema writes, is replaced.

    Raises:
        InputError: the folder is not empty, is not ours to replace, or cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; --out must be a folder")
    found = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if resume:
        yield
        return
    if found and not overwrite:
        raise InputError(f"{path} exists; --overwrite replaces it, --resume goes on with it")
    foreign = [name for name in found if name not in ours]
    if foreign:
        raise InputError(f"{path} holds {foreign[0]!r}, which Kinema did not write there; choose another --out")
    old = path.with_name(f".{path.name}.old")
    if found:
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    make_folder(path)
    try:
        yield
    except InputError:
        shutil.rmtree(path, ignore_errors=True)
        if found:
            old.rename(path)
        raise
    finally:
        if found:
            shutil.rmtree(old, ignore_errors=True)


def parameters(pairs: Sequence[str], option: str = "--param") -> dict[str, Any]:
    """Values from `name=value`: numbers, lists of numbers `1,2`, any other JSON, else a word.

    >>> parameters(["balls=2", "size=1,1.5", "energy=fixed", "walls=false"])
    {'balls': 2, 'size': [1, 1.5], 'energy': 'fixed', 'walls': False}

    Raises:
        InputError: no `=`, or a name twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"{option} must be name=value, got {pair!r}")
        name = name.strip().replace("-", "_")
        if name in values:
            raise InputError(f"{option} {name} is given twice")
        values[name] = _value(text)
    return values


def _value(text: str) -> Any:
    words = [word.strip() for word in text.split(",")]
    if all(NUMBER.fullmatch(word) for word in words):
        numbers = [float(word) if set(word) & set(".eE") else int(word) for word in words]
        return numbers if len(numbers) > 1 else numbers[0]
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError:
        return text


def _no_constant(word: str):
    raise InputError(f"{word} is not a finite number")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be made: {_sentence(error)}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"folder {folder} cannot be written")


def _sentence(error: BaseException) -> str:
    if isinstance(error, KinemaError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}"
    if isinstance(error, OSError) and error.strerror:
        where = f" {error.filename}" if error.filename else ""
        return f"{error.strerror[0].lower()}{error.strerror[1:]}:{where}" if where else error.strerror
    return str(error).strip().splitlines()[0]


def _console(file: Any) -> "Console":
    from rich.console import Console

    return Console(file=file)
