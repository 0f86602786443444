"""The user's own files as data: Zarr, `.npz`, HDF5 (plain, or in The Well's layout), a folder of pictures.

Files are data: nothing in them is executed, nothing outside of the file or folder that was named is read.
"""

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from kinema.errors import InputError, StoreCorrupt, require
from kinema.motion import trees
from kinema.motion.disk import place
from kinema.motion.trajectory import Trajectory

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_ZARR_CODECS = {"bytes", "zstd", "gzip", "blosc", "crc32c", "transpose"}
_CONSTANTS = "constants/"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """N samples on the host: what `learn` trains on, and what any file is read into.

    >>> data = Dataset({"x": np.zeros((8, 3, 2))}, ts=np.arange(3.0))
    >>> len(data), data.trajectory().ensemble
    (8, 8)

    Args:
        arrays: PyTree of NumPy arrays (N, ...); (N, frames, ...) if there are `ts`.
        labels: (N,) integers.
        ts: (frames,) times.
        constants: numbers without time by name, each (N, ...).
        meta: where it comes from, JSON.

    Raises:
        InputError: no data, lengths that disagree, NaN or infinity, arrays that are not numbers.
    """

    arrays: PyTree
    labels: Any = None
    ts: Any = None
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        named = {"x" if name == "." else name: array for name, array in trees.leaf_names(self.arrays).items()}
        if not named:
            raise InputError("the data has no arrays")
        size = _rows(*next(iter(named.items())))
        extra = {} if self.labels is None else {"labels": self.labels}
        extra |= {f"{_CONSTANTS}{name}": value for name, value in self.constants.items()}
        for name, array in {**named, **extra}.items():
            _check_numbers(name, array)
            if _rows(name, array) != size:
                raise InputError(f"{name} has {len(array)} rows, {next(iter(named))} has {size}")
        if self.labels is not None and (np.ndim(self.labels) != 1 or self.labels.dtype.kind not in "iu"):
            raise InputError(f"labels must be (N,) integers, got {np.shape(self.labels)} of {self.labels.dtype}")
        if self.ts is not None:
            _check_times(self.ts, named)

    def __len__(self) -> int:
        return len(next(iter(trees.leaf_names(self.arrays).values())))

    @classmethod
    def from_trajectory(cls, traj: Trajectory) -> "Dataset":
        """The ensemble of `traj`; a single trajectory becomes one row. The constant "label" becomes `labels`.

        Raises:
            InputError: see `Dataset`.
        """
        parts = (traj.states, traj.constants)
        states, constants = _host(parts, (lambda x: x[None]) if traj.ensemble is None else (lambda x: x))
        return cls(states, constants.pop("label", None), _common_times(np.asarray(traj.ts)), constants, traj.meta)

    def trajectory(self) -> Trajectory:
        """The data as an ensemble of trajectories; `labels` become the constant "label".

        Raises:
            InputError: there are no `ts`.
        """
        if self.ts is None:
            raise InputError("the data has no ts, so it is not motion: give times, (frames,)")
        labels = {} if self.labels is None else {"label": self.labels}
        return Trajectory(self.ts, self.arrays, {**self.constants, **labels}, self.meta, single=False)


def read(path: str | os.PathLike) -> Dataset:
    """Read a file or folder of samples.

    - Zarr (`.zarr`), NumPy (`.npz`) and plain HDF5 (`.h5`, `.hdf5`): an array named `ts` is times (frames,), `labels`
      integers (N,), `constants/NAME` numbers without time (N, ...); every other array is data (N, ...), or
      (N, frames, ...) where there are times. A lone array named `x` or `arr_0` is the data itself; several are a
      dictionary by name. In an `.npz`, a text named `meta` is JSON: where the data comes from.
    - HDF5 in The Well's layout: fields (N, frames, components..., grid...); see `kinema.motion.well`.
    - A folder of pictures: (N, height, width, channels) from 0 to 1, one channel if all are gray, in the order
      of their names; those in subfolders are labelled by subfolder.

    Raises:
        InputError: no such file, unknown kind, no data, NaN or infinity, no numbers, lengths that disagree.
        StoreCorrupt: the file is damaged or cut short.
        MissingExtra: h5py or pillow is not installed.
    """
    path = Path(path)
    if not place(path).exists():
        raise InputError(f"there is nothing at {path}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return dataset(*npz(path))
    if suffix in (".h5", ".hdf5"):
        return _read_hdf5(path)
    if suffix == ".zarr" or (path / "zarr.json").exists():
        return _read_zarr(path)
    if path.is_dir():
        return _read_pictures(path)
    raise InputError(f"{path} is of a kind that cannot be read; known: .zarr, .npz, .h5, .hdf5, a folder of pictures")


def npz(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of an `.npz` file by name, whatever their numbers are, and its `meta`.

    Raises:
        InputError: it holds pickled objects.
        StoreCorrupt: it is damaged or cut short.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):  # else NumPy takes it for a pickle
        raise StoreCorrupt(f"{path} is not an .npz file, or cut short")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _member(path, name, file) for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # RuntimeError: encrypted
        raise StoreCorrupt(f"{path} is damaged or cut short: {error}") from error
    meta: dict[str, Any] = {"source": path.name}
    if "meta" in arrays and arrays["meta"].dtype.kind == "U" and arrays["meta"].ndim == 0:
        meta |= _meta(path, str(arrays.pop("meta")))
    return arrays, meta


def _meta(path, text):
    try:
        meta = json.loads(text)
        if not isinstance(meta, dict):
            raise ValueError(f"it is a {type(meta).__name__}")
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{path}: meta must be a JSON object: {error}") from error
    return meta


def _member(path, name, file):
    try:
        return file[name]
    except ValueError as error:
        if "pickle" in str(error):
            raise InputError(f"{path}: {name} holds pickled objects, which are never read; save numbers") from error
        raise StoreCorrupt(f"{path}: {name} is damaged: {error}") from error


def _read_hdf5(path):
    h5py = require("h5py", "hdf5")
    from kinema.motion import well

    try:
        with h5py.File(path, "r") as file:
            if well.is_well(file):
                return well.read(file, {"source": path.name})
            arrays = {}

            def visit(name, item):
                if isinstance(item, h5py.Dataset):
                    arrays[name] = well.array(item)

            file.visititems(visit)  # hard links only: never into another file
            return dataset(arrays, {"source": path.name})
    except OSError as error:
        raise StoreCorrupt(f"{path} is damaged, cut short or not HDF5: {error}") from error


def _read_zarr(path):
    from kinema.motion import store
    from kinema.motion.folder import is_folder

    if not is_folder(place(path)):
        return _read_foreign(path)
    parts = store.read(path)
    lift: Callable = (lambda x: x[None]) if parts["single"] else (lambda x: x)
    states, constants = _host((parts["states"], parts["constants"]), lift)
    return Dataset(states, constants.pop("label", None), _common_times(parts["ts"]), constants, parts["meta"])


def _read_foreign(path):
    """Arrays of a Zarr v3 store that others wrote: no checksums, and only codecs that do nothing but pack numbers."""
    import zarr

    arrays = {}
    for file in path.rglob("*"):
        if not file.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{file} is a link out of {path}")
    for file in sorted(path.rglob("zarr.json")):
        name = file.parent.relative_to(path).as_posix()
        try:
            spec = json.loads(file.read_bytes())
            if spec["node_type"] != "array":
                continue
            codecs = {codec["name"] for codec in spec["codecs"]}
            if not codecs <= _ZARR_CODECS or not isinstance(spec["data_type"], str):
                raise InputError(f"{path}: {name} has codecs {', '.join(codecs)}; known: {', '.join(_ZARR_CODECS)}")
            arrays["x" if name == "." else name] = np.asarray(
                zarr.open_array(path / name, mode="r", zarr_format=3)[...]
            )
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise StoreCorrupt(f"{path}: {name} is damaged: {error}") from error
    if not arrays:
        raise InputError(f"{path} holds no Zarr v3 arrays")
    return dataset(arrays, {"source": path.name})


def _read_pictures(folder):
    image = require("PIL.Image", "images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES and not p.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(_PICTURES)})")
    pictures = [_picture(image, file, folder) for file in files]
    shape, first = pictures[0].shape[:2], files[0]
    for file, picture in zip(files, pictures):
        if picture.shape[:2] != shape:
            raise InputError(
                f"{file} is {picture.shape[1]} x {picture.shape[0]} pixels, {first} {shape[1]} x {shape[0]}"
            )
    gray = all((p == p[..., :1]).all() for p in pictures)
    stacked = np.stack([p[..., :1] if gray else p for p in pictures])
    groups = [str(file.parent.relative_to(folder)) for file in files]
    classes = sorted(set(groups))
    labels = np.array([classes.index(g) for g in groups], np.int32) if len(classes) > 1 else None
    meta = {"source": folder.name, **({"classes": classes} if labels is not None else {})}
    return Dataset(stacked.astype(np.float32) / 255, labels, meta=meta)


def _picture(image, file, folder):
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file} is a link out of {folder}")
    try:
        with image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, image.DecompressionBombError) as error:
        raise StoreCorrupt(f"{file} is not a picture that can be read: {error}") from error


def dataset(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Dataset:
    """Named arrays as data, by the rule of `read`."""
    arrays = dict(arrays)
    ts, labels = arrays.pop("ts", None), arrays.pop("labels", None)
    constants = {n.removeprefix(_CONSTANTS): arrays.pop(n) for n in list(arrays) if n.startswith(_CONSTANTS)}
    if len(arrays) == 1 and next(iter(arrays)) in ("x", "arr_0"):
        return Dataset(next(iter(arrays.values())), labels, ts, constants, meta)
    return Dataset(arrays, labels, ts, constants, meta)


def _host(tree, f):
    return jax.tree.map(lambda x: f(np.asarray(x)), tree)


def _common_times(ts):
    if ts.ndim > 1:
        if not (ts == ts[:1]).all():
            raise InputError("the trajectories have different times; data needs one ts, (frames,)")
        ts = ts[0]
    return ts


def _rows(name, array):
    if np.ndim(array) == 0 or not np.size(array):
        raise InputError(f"{name} is empty: shape {np.shape(array)}")
    return len(array)


def _check_numbers(name, array):
    if array.dtype.kind not in "biufc":
        raise InputError(f"{name} holds {array.dtype}, not numbers")
    bad = trees.first_not_finite({name: array})
    if bad is not None:
        raise InputError(f"{name} is NaN or infinite in row {bad[1]}")


def _check_times(ts, named):
    if ts.ndim != 1 or not len(ts):
        raise InputError(f"ts must have shape (frames,), got {ts.shape}")
    _check_numbers("ts", ts)
    wrong = np.flatnonzero(np.diff(ts) <= 0)
    if len(wrong):
        i = int(wrong[0]) + 1
        raise InputError(f"ts must increase, got ts[{i}]={ts[i]} after ts[{i - 1}]={ts[i - 1]}")
    for name, array in named.items():
        if array.ndim < 2 or array.shape[1] != len(ts):
            raise InputError(f"{name} must have shape (N, {len(ts)} frames, ...) as ts has, got {array.shape}")
