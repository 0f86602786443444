"""Weights on disk: one safetensors file for one tree, JSON metadata and a SHA-256 for every tensor in its header.

Any safetensors reader opens the files, and files written by others load (they carry no checksums). A file appears under
its name only when it is whole and on the disk: temporary name, fsync, rename. Read and written here, not by the
safetensors package, because errors must name the damaged tensor and keep the system's error number, and every dtype of
ml_dtypes must load.
Layout: 8 bytes header length, JSON header, tensors.   [safetensors format; Hugging Face, 2022]
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import jax.random as jr
import ml_dtypes
import numpy as np
from jaxtyping import PyTree

from kinema._files import whole_file
from kinema.errors import InputError, StoreCorrupt
from kinema.motion import trees

_FORMAT = 1
_HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors package
_OURS = "kinema"
_KEY = "key:"
_CODES = {
    "bool": "BOOL",
    **{f"{kind}int{bits}": f"{kind or 'i'}{bits}".upper() for kind in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
}
_NAMES = {code: name for name, code in _CODES.items()}


def save_weights(path: str | os.PathLike, tree: PyTree, meta: Mapping[str, Any] | None = None) -> None:
    """Write the arrays of `tree` (JAX, NumPy, random keys; any dtype), and `meta`, any JSON value, beside them.

    Numbers and strings that are leaves of the tree are recorded too, and compared when loading. A file of that name is
    replaced only when the new one is on the disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(f"{folder}/w.safetensors", {"w": np.ones(2)}, {"note": "mine"})
    ...     load_weights(f"{folder}/w.safetensors", {"w": np.zeros(2)})["w"].tolist()
    [1.0, 1.0]

    Raises:
        InputError: `meta` is not JSON.
        OSError: the file cannot be written; what was there before is intact.
    """
    try:
        record = json.dumps({} if meta is None else meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"meta must be JSON (text, finite numbers, lists, dictionaries): {error}") from error
    arrays = _stored(tree)
    checksums = digests(tree)
    table = {name: {**spec, "sha256": checksums[name]} for name, spec in leaf_specs(tree).items()}
    scalars = {name: repr(leaf) for name, leaf in _scalars(tree).items()}
    ours = json.dumps({"format": _FORMAT, "leaves": table, "scalars": scalars, "meta": json.loads(record)})
    header: dict[str, Any] = {"__metadata__": {_OURS: ours, "sha256": hashlib.sha256(ours.encode()).hexdigest()}}
    # Widest items first: then every tensor is aligned to its item size, as the format asks.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    offset = 0
    for name in order:
        x = arrays[name]
        code, shape = _CODES.get(x.dtype.name), list(x.shape)
        if code is None:  # a dtype that the format does not know: its bytes
            code, shape = "U8", [*shape, x.dtype.itemsize]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, offset + x.nbytes]}
        offset += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(arrays[name]))


def load_weights(path: str | os.PathLike, like: PyTree, *, prefix: str = "") -> PyTree:
    """`like` with its arrays replaced by those of the file, checked against their SHA-256.

    `like` gives structure, shapes and dtypes (`jax.ShapeDtypeStruct` leaves will do: `eqx.filter_eval_shape`). With a
    `prefix` such as "ema" the part of the file below it is loaded.

    Raises:
        InputError: no such file, or one of another model: the first leaves that differ, with shapes and dtypes.
        StoreCorrupt: the file is damaged or cut short; the tensor is named.
    """
    file = _open(path)
    found = trees.below(file.specs(), prefix) if prefix else file.specs()
    unlike = differences(found, leaf_specs(like))
    if file.ours is not None:
        scalars = trees.below(file.ours["scalars"], prefix) if prefix else file.ours["scalars"]
        unlike += [
            f"{name} is {scalars.get(name, 'absent')} in the file, {value} here"
            for name, value in ((name, repr(leaf)) for name, leaf in _scalars(like).items())
            if scalars.get(name) != value
        ]
    if unlike:
        raise InputError(f"{path} holds another model: {shorten(unlike)}")
    arrays = {}
    for name, leaf in trees.leaf_names(like).items():
        x = file.read(trees.join(prefix, name))
        arrays[name] = x if isinstance(leaf, np.ndarray | np.generic) else jnp.asarray(x)
    return trees.replace_leaves(like, arrays)


def load_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """Every tensor of a file by name, as NumPy arrays (random keys as keys), checked against their SHA-256.

    Raises:
        InputError: no such file.
        StoreCorrupt: the file is damaged or cut short; the tensor is named.
    """
    file = _open(path)
    return {name: file.read(name) for name in file.specs()}


def read_meta(path: str | os.PathLike) -> Any:
    """The metadata that `save_weights` was given; {} for a file written by others.

    Raises:
        InputError: no such file.
        StoreCorrupt: the header is damaged.
    """
    file = _open(path)
    return {} if file.ours is None else file.ours["meta"]


def read_specs(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """What a file holds, from its header alone: name -> {"dtype", "shape", and "sha256" if it is one of ours}.

    Raises:
        InputError: no such file.
        StoreCorrupt: the header is damaged.
    """
    return _open(path).specs()


def leaf_specs(tree: PyTree) -> dict[str, dict[str, Any]]:
    """name -> {"dtype", "shape"} of the arrays of a tree; the dtype of a random key is "key:" and its generator."""
    return {
        name: {"dtype": _dtype_name(leaf), "shape": list(leaf.shape)} for name, leaf in trees.leaf_names(tree).items()
    }


def digests(tree: PyTree) -> dict[str, str]:
    """name -> SHA-256 of the bytes of the arrays of a tree, as `read_specs` gives them."""
    return {name: hashlib.sha256(_bytes(x)).hexdigest() for name, x in _stored(tree).items()}


def differences(found: Mapping[str, Mapping], wanted: Mapping[str, Mapping]) -> list[str]:
    """One phrase for each name that two tables of `leaf_specs` do not agree on, in the order of `wanted`."""
    phrases = []
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        there, here = (_phrase(table.get(name)) for table in (found, wanted))
        if there != here:
            phrases.append(f"{name} is {there} in the file, {here} here")
    return phrases


def shorten(phrases: list[str], first: int = 3) -> str:
    """The first few phrases, and how many more there are."""
    more = f"; and {len(phrases) - first} more" if len(phrases) > first else ""
    return "; ".join(phrases[:first]) + more


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A `whole_file` whose name, too, is on the disk at the end."""
    path = Path(path)
    with whole_file(path) as file:
        yield file
    sync_folder(path.parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """Put the names in a folder on the disk: a rename is safe from a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclasses.dataclass(frozen=True)
class _File:
    """An opened header: where each tensor lies, and our own record if there is one."""

    path: Path
    tensors: dict[str, dict[str, Any]]
    data: int  # offset of the first tensor
    ours: dict[str, Any] | None

    def specs(self) -> dict[str, dict[str, Any]]:
        if self.ours is not None:
            return self.ours["leaves"]
        return {n: {"dtype": _NAMES[t["dtype"]], "shape": t["shape"]} for n, t in self.tensors.items()}

    def read(self, name: str) -> Any:
        """One tensor as a NumPy array, or as random keys."""
        start, stop = self.tensors[name]["data_offsets"]
        raw = np.fromfile(self.path, np.uint8, stop - start, offset=self.data + start)
        if len(raw) != stop - start:
            raise StoreCorrupt(f"{self.path} is cut short inside tensor {name}")
        if self.ours is not None and hashlib.sha256(_bytes(raw)).hexdigest() != self.ours["leaves"][name]["sha256"]:
            raise StoreCorrupt(f"{self.path} is damaged: tensor {name} does not match its SHA-256")
        spec = self.specs()[name]
        if spec["dtype"].startswith(_KEY):
            words = raw.view(np.uint32).reshape(*spec["shape"], -1)
            return jr.wrap_key_data(jnp.asarray(words), impl=spec["dtype"].removeprefix(_KEY))
        return raw.view(_dtype(spec["dtype"])).reshape(spec["shape"])


def _open(path: str | os.PathLike) -> _File:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _HEADER_LIMIT or 8 + length > size:
            raise StoreCorrupt(f"{path} is cut short or not a safetensors file: {size} bytes, header of {length}")
        text = file.read(length)
    try:
        tensors = json.loads(text)
        foreign = tensors.pop("__metadata__", {})
        ours = json.loads(foreign[_OURS]) if _OURS in foreign else None
        end = _check_layout(tensors)
        if ours is not None:
            _check_record(ours, foreign, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(f"{path} is damaged: its header cannot be read ({error})") from error
    data = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        if data + tensor["data_offsets"][1] > size:
            raise StoreCorrupt(f"{path} is cut short: tensor {name} ends after the {size} bytes of the file")
    if data + end != size:
        raise StoreCorrupt(f"{path} is damaged: {size} bytes where its header says {data + end}")
    return _File(path, tensors, data, ours)


def _check_layout(tensors: dict[str, Any]) -> int:
    """The tensors follow each other without gap or overlap; returns where the last one ends. ValueError otherwise."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = tensor["data_offsets"]
        width = np.dtype(_dtype(_NAMES[tensor["dtype"]])).itemsize
        count = 1
        for extent in tensor["shape"]:
            if type(extent) is not int or extent < 0:
                raise ValueError(f"shape of tensor {name}")
            count *= extent
        if start != end or stop - start != count * width:
            raise ValueError(f"place of tensor {name}")
        end = stop
    return end


def _check_record(ours: dict[str, Any], foreign: dict[str, str], tensors: dict[str, Any]) -> None:
    if hashlib.sha256(foreign[_OURS].encode()).hexdigest() != foreign["sha256"]:
        raise ValueError("it does not match its SHA-256")
    if ours["format"] != _FORMAT:
        raise ValueError(f"format {ours['format']}, this version reads {_FORMAT}")
    if set(ours["leaves"]) != set(tensors):
        raise ValueError(f"tensor {sorted(set(ours['leaves']) ^ set(tensors))[0]} is listed once only")


def _scalars(tree: PyTree) -> dict[str, Any]:
    kinds = (bool, int, float, complex, str)
    return {name: leaf for name, leaf in trees.named_leaves(tree) if isinstance(leaf, kinds)}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays as they lie in the file: on the host, in C order, keys as their words."""
    leaves = trees.leaf_names(tree).items()
    return {name: np.asarray(jr.key_data(leaf) if _is_key(leaf) else leaf, order="C") for name, leaf in leaves}


def _dtype_name(leaf: Any) -> str:
    if not _is_key(leaf):
        return np.dtype(leaf.dtype).name
    names = []  # traced, so that a ShapeDtypeStruct will do
    jax.eval_shape(lambda key: names.append(jr.key_impl(key)), leaf)
    return f"{_KEY}{names[0]}"


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _bytes(x: np.ndarray) -> memoryview:
    return x.reshape(-1).view(np.uint8).data


def _phrase(spec: Mapping[str, Any] | None) -> str:
    return "absent" if spec is None else f"{spec['dtype']} {tuple(spec['shape'])}"
