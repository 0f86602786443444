"""A Zarr v3 folder in which every file is known by its SHA-256, and which changes as a whole or not at all.

The manifest {file: (SHA-256, size)} lies in the attributes of the root group, in `zarr.json`; replacing that one file
makes a change valid. A file that a change rewrites is kept as `.old/<SHA-256>` until then: whoever reads meanwhile, or
after a crash, still finds the bytes that the old manifest names. Any Zarr v3 library can read the folder.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import math
import re
import shutil
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from kinema.errors import InputError, StoreCorrupt
from kinema.motion.disk import check_key, check_name, keep, put_back, write_file
from kinema.motion.weights import atomic_file, sync_folder

__all__ = ["Folder", "check_name", "is_folder", "open_folder"]

_FORMAT = 1
_ROOT = "zarr.json"
_OLD = ".old"
_CHUNK_BYTES = 1 << 21  # before compression: small enough for slices, large enough for disks
_DTYPES = ["bool", *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64))]
_DTYPES += ["float16", "float32", "float64", "complex64", "complex128"]
_ZARR_CONFIG: Any = {"write_empty_chunks": True}  # a chunk that is not there is then always damage, never zeros
_CODECS = {"bytes", "zstd"}  # what `add` writes; any other codec would be somebody else's code path
_DIGEST = re.compile("[0-9a-f]{64}")


class Folder(Store):
    """The folder at `root` with its manifest: a Zarr store that checks what it reads and records what it writes.

    Args:
        root: an existing folder.
        files: the manifest: {path inside: (SHA-256, size)}.
        header: whatever its user keeps beside the arrays, JSON.
    """

    supports_writes: Any = True
    supports_deletes: Any = True
    supports_listing: Any = True

    def __init__(self, root: Path, files: Mapping[str, tuple[str, int]], header: Any, *, read_only: bool = False):
        super().__init__(read_only=read_only)
        self.root, self.header = root, header
        self.files = dict(files)
        self.committed = dict(self.files)
        self._abandoned = False
        self._turn = threading.Lock()

    # -- arrays

    def add(self, name: str, data: np.ndarray, axes: tuple[str, ...]) -> None:
        """Write a new array; the chunks of an axis named "trajectory" leave room to append."""
        data = np.asarray(data)
        if data.dtype.name not in _DTYPES:
            raise InputError(f"{name} has dtype {data.dtype.name}; a store holds {', '.join(_DTYPES)}")
        chunks = _chunk_shape(data.shape, data.dtype.itemsize, grows=axes[:1] == ("trajectory",))
        zarr.create_array(
            self,
            name=name,
            data=data,
            chunks=chunks,
            dimension_names=[*axes, *[None] * (data.ndim - len(axes))],
            compressors=ZstdCodec(level=3),
            config=_ZARR_CONFIG,
        )

    def array(self, name: str) -> Any:
        """A stored array, to slice.

        Raises:
            StoreCorrupt: it is missing or damaged, or its chunks are not all there.
        """
        where = f"{name}/{_ROOT}"
        text = self.read(where)
        if text is None:
            raise StoreCorrupt(f"{self.root}: {name} is missing")
        try:
            spec = json.loads(text)
            kind, codecs = spec["data_type"], {codec["name"] for codec in spec["codecs"]}
            grid = spec["chunk_grid"]["configuration"]["chunk_shape"]
            counts = [math.ceil(n / c) for n, c in zip(spec["shape"], grid)]
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise StoreCorrupt(f"{self.root}: {where} does not describe an array") from error
        if kind not in _DTYPES or not codecs <= _CODECS:
            raise StoreCorrupt(f"{self.root}: {name} has dtype {kind} and codecs {', '.join(codecs)}, not ours")
        keys = ("/".join([name, "c", *map(str, i)]) for i in itertools.product(*map(range, counts)))
        absent = next((key for key in keys if key not in self.files), None)
        if absent is not None:
            raise StoreCorrupt(f"{self.root}: {absent} is missing")
        return zarr.open_array(
            self, path=name, mode="r" if self.read_only else "r+", zarr_format=3, config=_ZARR_CONFIG
        )

    # -- bytes

    def read(self, key: str) -> bytes | None:
        """The bytes of a file, checked; None if the manifest does not list it.

        Raises:
            StoreCorrupt: missing, cut short or changed.
        """
        if key not in self.files:
            return None
        digest, size = self.files[key]
        found = None
        for path in (self._inside(key), self.root / _OLD / digest):
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if hashlib.sha256(data).hexdigest() == digest:
                return data
            found = data if found is None else found
        if found is None:
            raise StoreCorrupt(f"{self.root}: {key} is missing")
        what = f"has {len(found)} bytes instead of {size}" if len(found) != size else "has changed since it was written"
        raise StoreCorrupt(f"{self.root}: {key} {what}")

    def write(self, key: str, data: bytes) -> None:
        """Write a file and record it; the file that the committed manifest means by this name is kept aside."""
        if key == _ROOT:  # the root group is written by `commit`
            return
        digest = hashlib.sha256(data).hexdigest()
        with self._turn:
            if self._abandoned:
                return
            path = self._inside(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            if key in self.committed:
                keep(path, self.root / _OLD / self.committed[key][0])
            write_file(path, data)
            self.files[key] = (digest, len(data))

    def commit(self) -> None:
        """Make the files written so far, and the header, the content of this folder."""
        body = {
            "format": _FORMAT,
            "header": self.header,
            "files": {key: list(self.files[key]) for key in sorted(self.files)},
        }
        root = {"zarr_format": 3, "node_type": "group", "attributes": {"kinema": {**body, "sha256": _digest(body)}}}
        changed = [self.root / key for key in self.files if self.files[key] != self.committed.get(key)]
        for folder in {parent for path in changed for parent in path.parents if parent.is_relative_to(self.root)}:
            sync_folder(folder)
        with atomic_file(self.root / _ROOT) as file:
            file.write(json.dumps(root).encode())
        self.committed = dict(self.files)
        shutil.rmtree(self.root / _OLD, ignore_errors=True)

    def abandon(self) -> None:
        """From now on nothing is written: where one write has failed, Zarr has others under way."""
        with self._turn:
            self._abandoned = True

    def restore(self) -> None:
        """Undo what an unfinished change has done to files that the committed manifest lists."""
        self.files = dict(self.committed)
        if not (self.root / _OLD).exists():  # whatever grows an array rewrites its shape first
            return
        for key, (digest, _) in self.committed.items():
            if (self.root / _OLD / digest).exists():
                put_back(self.root / _OLD / digest, self._inside(key))
        for name in (key.removesuffix(_ROOT) for key in self.committed if key.endswith(f"/{_ROOT}")):
            for path in self._inside(f"{name}c").rglob("*"):
                if path.is_file() and path.relative_to(self.root).as_posix() not in self.committed:
                    path.unlink()
        shutil.rmtree(self.root / _OLD, ignore_errors=True)

    def _inside(self, key: str) -> Path:
        """Where the file is; links on the way must not lead out of the folder."""
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreCorrupt(f"{self.root}: {key} is a link out of the store")
        return path

    def verify(self) -> int:
        """Check every file against the manifest; how many there are.

        Raises:
            StoreCorrupt: names the damaged files.
        """
        faults = []
        for key in self.files:
            try:
                self.read(key)
            except StoreCorrupt as error:
                faults.append(str(error).removeprefix(f"{self.root}: "))
        if faults:
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise StoreCorrupt(f"{self.root}: {'; '.join(faults[:3])}{more}")
        return len(self.files)

    # -- the interface of zarr.abc.store.Store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: Any = None) -> Buffer | None:
        data = await asyncio.to_thread(self.read, key)
        if data is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(_part(data, byte_range))

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Any) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.files

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(self.write, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        self._check_writable()
        self.files.pop(key, None)

    async def list(self) -> AsyncIterator[str]:
        for key in sorted(self.files):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in sorted(self.files):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in sorted({key[len(start) :].split("/")[0] for key in self.files if key.startswith(start)}):
            yield name


def open_folder(root: Path, *, read_only: bool = True) -> Folder:
    """The folder at `root`, its manifest checked.

    Raises:
        InputError: there is nothing, or something else.
        StoreCorrupt: the manifest is damaged.
    """
    try:
        text = (root / _ROOT).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{root} is {'not a Zarr store' if root.exists() else 'not there'}") from None
    try:
        group = json.loads(text)
        ours = group["attributes"].get("kinema")
        if ours is None:
            raise InputError(f"{root} is a Zarr store, but not one of Kinema")
        if (group["zarr_format"], group["node_type"]) != (3, "group"):
            raise KeyError("node_type")
        body = {key: ours[key] for key in ("format", "header", "files")}
        intact = ours["sha256"] == _digest(body)
        files = {check_key(key): (digest, int(size)) for key, (digest, size) in body["files"].items()}
        if not all(_DIGEST.fullmatch(digest) for digest, _ in files.values()):
            raise ValueError("SHA-256")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(f"{root}: the manifest in {_ROOT} is damaged ({type(error).__name__})") from error
    if not intact:
        raise StoreCorrupt(f"{root}: the manifest in {_ROOT} has changed since it was written")
    if body["format"] != _FORMAT:
        raise InputError(f"{root} has format {body['format']}; this version of Kinema reads format {_FORMAT}")
    return Folder(root, files, body["header"], read_only=read_only)


def _chunk_shape(shape, itemsize, grows):
    """Whole trajectories if they fit into a chunk, else parts of one; room for more along an axis that grows."""
    chunks = [max(n, 1) for n in shape]
    if grows:
        chunks[0] = max(1, _CHUNK_BYTES // (itemsize * math.prod(chunks[1:])))
    for axis in range(len(chunks)):
        excess = itemsize * math.prod(chunks) / _CHUNK_BYTES
        if excess > 1:
            chunks[axis] = max(1, int(chunks[axis] / excess))
    return tuple(chunks)


def _digest(body):
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _part(data, byte_range):
    match byte_range:
        case None:
            return data
        case RangeByteRequest(start, end):
            return data[start:end]
        case OffsetByteRequest(offset):
            return data[offset:]
        case SuffixByteRequest(suffix):
            return data[-suffix:]
    raise TypeError(f"unknown byte range {byte_range!r}")


def is_folder(root: Path) -> bool:
    """Whether there is a store of Kinema, damaged or not."""
    with contextlib.suppress(OSError, ValueError):
        return b'"kinema"' in (root / _ROOT).read_bytes()
    return False
