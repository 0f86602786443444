"""Files that appear whole or not at all. Without JAX, because evidence is drawn without it."""

import contextlib
import os
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write `data` under another name, put it on the disk and rename. The caller syncs the folder.

    Raises:
        OSError: it cannot be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
