"""Files that appear whole or not at all. Without JAX, because evidence is drawn without it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when it is whole and on the disk; on an error nothing is left behind.
    The caller syncs the folder.

    Raises:
        OSError: it cannot be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write `data` as a `whole_file`."""
    with whole_file(path) as file:
        file.write(data)
