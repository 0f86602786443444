"""Files and folders that change as a whole or not at all, and names that stay inside a folder."""

import contextlib
import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinema._files import write_file
from kinema.errors import InputError, StoreCorrupt
from kinema.motion.weights import sync_folder

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)
_NAME = re.compile(r"[^./\\:*?\"<>|\x00-\x1f][^/\\:*?\"<>|\x00-\x1f]{0,99}")


def check_name(name: Any, what: str) -> str:
    """`name`, if it can be a name in the folder.

    Raises:
        InputError: it could lead out of the folder, or not every file system could hold it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f'{what} must be named by plain text without / \\ : * ? " < > | or a leading dot, got {name!r}'
        )
    return name


def check_key(key: str) -> str:
    """A path of such names.

    Raises:
        InputError: it could lead out of the folder.
    """
    for part in key.split("/"):
        check_name(part, "a file in a store")
    return key


def keep(path: Path, kept: Path) -> None:
    """Give the bytes of `path` a second name, which stays when `path` is replaced; the first call counts."""
    if kept.exists():
        return
    kept.parent.mkdir(exist_ok=True)
    try:
        os.link(path, kept)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        write_file(kept, path.read_bytes())
    sync_folder(kept.parent)


def put_back(kept: Path, path: Path) -> None:
    """Give `path` the bytes that `keep` has kept; needs no room on the disk where there are hard links."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    keep(kept, temporary)
    os.replace(temporary, path)
    temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def publish(temporary: Path, path: Path) -> None:
    """Give a finished folder its name. No folder can be renamed onto another: the old one steps aside for a moment."""
    stand_in = aside(path)
    if path.exists():
        shutil.rmtree(stand_in, ignore_errors=True)
        os.rename(path, stand_in)
    try:
        os.rename(temporary, path)
    except BaseException:
        if stand_in.exists():
            os.rename(stand_in, path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(stand_in, ignore_errors=True)


def aside(path: Path) -> Path:
    """Where the old folder is while `publish` replaces it."""
    return path.with_name(f".{path.name}.old")


def place(path: Path) -> Path:
    """Where the folder is now: aside, if a process died in the middle of `publish`."""
    return aside(path) if not path.exists() and aside(path).exists() else path


def recover(path: Path) -> None:
    """Bring a folder back that was left aside."""
    if place(path) != path:
        os.rename(aside(path), path)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """One process changes a folder at a time. The lock ends with the process, however it ends.

    Where the file system has no locks (some network drives), a warning says so and the change goes on without one.

    Raises:
        InputError: another process has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows: one writer at a time is the caller's care
        fcntl = None
    if fcntl is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing to {folder}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"{folder} lies where files cannot be locked ({error.strerror}); let no other process write to it",
                stacklevel=4,
            )
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(path: Path, done: str) -> Iterator[None]:
    """Errors of the operating system say what was not done to `path`, and that nothing else happened."""
    try:
        yield
    except StoreCorrupt:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} was not {done} ({reason}); what was there before is intact") from error
