"""Trajectories on disk: one Zarr v3 folder, written as a whole, checked at every read, cheap to append to and to slice.

balls.zarr/
  zarr.json               header, and the SHA-256 of every other file
  ts                      (frames,), or (ensemble, frames)
  states[/name...]        (ensemble, frames, ...)
  constants/name          (ensemble, ...)
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

import kinema
from kinema.errors import InputError, StoreCorrupt
from kinema.motion.disk import check_name, explained, place, publish, recover, writing
from kinema.motion.trajectory import Trajectory

if TYPE_CHECKING:
    from kinema.motion.folder import Folder

_DEPTH = 32  # of nested states


def save(path: str | os.PathLike, traj: Trajectory, *, overwrite: bool = False) -> None:
    """Write `traj` to a new store at `path`; folders on the way are made.

    States may be nested dictionaries, lists and tuples of arrays. The store is written under another name beside `path`
    and takes its name when it is whole and on the disk. With `overwrite` it replaces a store that is there, in that
    moment; until then, and if anything fails, the old one is untouched. Dense output is not kept.

    Raises:
        InputError: something is there already; a name that could lead out of the folder; a dtype or a kind of PyTree
            that the store cannot hold.
        OSError: no permission, disk full; what was there before is intact.
    """
    from kinema.motion.folder import Folder

    path = Path(path)
    header, arrays = _encode(traj)
    with explained(path, "saved"):
        _check_free(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir()
        folder = Folder(temporary, {}, header)
        try:
            for name, (axes, array) in arrays.items():
                folder.add(name, array, axes)
            folder.commit()
            with writing(path):
                publish(temporary, path)
        except BaseException:
            folder.abandon()
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def append(path: str | os.PathLike, traj: Trajectory) -> None:
    """Add the trajectories of `traj` to the ensemble in the store at `path`.

    Only the new chunks, and the last one of each array if it was not full, are written. The store's `meta` stays. Until
    the manifest is replaced at the very end, and if anything fails or the process dies, the store is what it was.

    Raises:
        InputError: no store; times, names, shapes or dtypes differ from the store's; another process is appending.
        StoreCorrupt: the chunk that new rows must go into is damaged.
        OSError: no permission, disk full; the store is intact.
    """
    from kinema.motion.folder import open_folder

    path = Path(path)
    header, arrays = _encode(traj)
    with explained(path, "appended to"):
        recover(path)
        with writing(path):
            folder = open_folder(path, read_only=False)
            folder.restore()
            _check_alike(folder, header, arrays)
            try:
                rows = folder.header["ensemble"]
                for name, (axes, array) in arrays.items():
                    if axes[:1] == ("trajectory",):
                        stored = folder.array(name)
                        stored.resize((rows + len(array), *array.shape[1:]))
                        stored[rows:] = array
                folder.header = {**folder.header, "ensemble": rows + header["ensemble"]}
                folder.commit()
            except BaseException:
                folder.abandon()
                with contextlib.suppress(OSError):  # else whoever comes next restores it
                    folder.restore()
                raise


def load(path: str | os.PathLike, *, ensemble: slice | None = None, frames: slice | None = None) -> Trajectory:
    """Read a store, or the part that `ensemble` and `frames` choose: only the chunks that hold it, each one checked.

    Double precision is kept only where JAX has it enabled (`jax_enable_x64`).

    Raises:
        InputError: no store; a slice that chooses nothing, or an ensemble slice of a single trajectory.
        StoreCorrupt: a chunk is damaged; it is named.
    """
    return Trajectory(**read(path, ensemble=ensemble, frames=frames))


def read(path: str | os.PathLike, *, ensemble: slice | None = None, frames: slice | None = None) -> dict[str, Any]:
    """As `load`, but the arguments of `Trajectory` with NumPy arrays as they are on the disk."""
    from kinema.motion.folder import open_folder

    path = place(Path(path))
    folder = open_folder(path)
    try:
        return _decode(folder, ensemble, frames)
    except StoreCorrupt:
        newer = open_folder(path)
        if newer.files == folder.files:
            raise
        return _decode(newer, ensemble, frames)  # it was appended to meanwhile


def verify(path: str | os.PathLike) -> int:
    """Read every file of a store and compare it with its SHA-256; returns how many there are.

    Raises:
        InputError: no store.
        StoreCorrupt: names the first damaged files.
    """
    from kinema.motion.folder import open_folder

    return open_folder(place(Path(path))).verify()


# -- a trajectory as named arrays and a header


def _encode(traj):
    """(header, {name: (names of the leading axes, array)})."""
    lead = () if traj.ensemble is None else ("trajectory",)
    ts = np.asarray(traj.ts)
    if ts.ndim > 1 and (ts == ts[:1]).all():  # `jax.vmap` repeats times that are the same
        ts = ts[0]
    arrays: dict[str, tuple[tuple[str, ...], Any]] = {"ts": ((*lead, "frame") if ts.ndim > 1 else ("frame",), ts)}
    structure = _flatten(traj.states, "states", (*lead, "frame"), arrays)
    for name, value in traj.constants.items():
        _flatten({name: value}, "constants", lead, arrays)
    header = {
        "kind": "trajectory",
        "version": kinema.__version__,
        "ensemble": traj.ensemble,
        "structure": structure,
        "constants": sorted(traj.constants),
        "meta": traj.meta,
    }
    return header, arrays


def _flatten(tree, name, axes, arrays, depth=0) -> Any:
    """What the tree is made of, as JSON; its arrays go into `arrays`."""
    if depth > _DEPTH:
        raise InputError(f"states are nested more than {_DEPTH} deep")
    if tree is None:
        return None
    if type(tree) is dict:
        folded = [check_name(key, "a part of the state").casefold() for key in tree]
        if len(set(folded)) < len(folded):
            raise InputError(f"names in {name} must differ by more than upper and lower case: {', '.join(tree)}")
        return {"dict": {k: _flatten(v, f"{name}/{k}", axes, arrays, depth + 1) for k, v in sorted(tree.items())}}
    if type(tree) in (list, tuple):
        kind = type(tree).__name__
        return {kind: [_flatten(v, f"{name}/{i}", axes, arrays, depth + 1) for i, v in enumerate(tree)]}
    if not hasattr(tree, "shape"):
        raise InputError(f"{name} is a {type(tree).__name__}; a store holds dictionaries, lists and tuples of arrays")
    try:
        arrays[name] = (axes, np.asarray(tree))
    except TypeError as error:
        raise InputError(f"{name} cannot be stored: {error}") from error
    return "array"


def _unflatten(structure, name, get, depth=0) -> PyTree:
    if depth > _DEPTH:
        raise StoreCorrupt(f"states are nested more than {_DEPTH} deep")
    match structure:
        case None:
            return None
        case "array":
            return get(name)
        case {"dict": dict(parts)}:
            return {k: _unflatten(v, f"{name}/{check_name(k, name)}", get, depth + 1) for k, v in parts.items()}
        case {"list": list(parts)}:
            return [_unflatten(v, f"{name}/{i}", get, depth + 1) for i, v in enumerate(parts)]
        case {"tuple": list(parts)}:
            return tuple(_unflatten(v, f"{name}/{i}", get, depth + 1) for i, v in enumerate(parts))
    raise StoreCorrupt(f"the structure of {name} is damaged")


def _decode(folder: "Folder", ensemble, frames) -> dict[str, Any]:
    header = _header(folder)
    size = header["ensemble"]
    stored_ts = folder.array("ts")
    chosen = _slice("frames", frames, stored_ts.shape[-1])
    if size is None and ensemble is not None:
        raise InputError(f"ensemble={ensemble}, but {folder.root} holds a single trajectory")
    rows = () if size is None else (_slice("ensemble", ensemble, size),)
    ts = stored_ts[(*rows, chosen)] if stored_ts.ndim > 1 else stored_ts[chosen]
    states = _unflatten(header["structure"], "states", lambda name: folder.array(name)[(*rows, chosen)])
    names = {name: f"constants/{check_name(name, 'constants')}" for name in header["constants"]}
    constants = {name: folder.array(where)[rows or ...] for name, where in names.items()}
    return {"ts": ts, "states": states, "constants": constants, "meta": header["meta"], "single": size is None}


def _header(folder: "Folder") -> dict[str, Any]:
    match folder.header:
        case {
            "kind": "trajectory",
            "ensemble": None | int(),
            "structure": _,
            "constants": list(names),
            "meta": dict(),
        } if all(isinstance(name, str) for name in names):
            return folder.header
    raise InputError(f"{folder.root} holds no trajectory")


def _slice(what, chosen, size):
    if chosen is None:
        return slice(0, size)
    if not isinstance(chosen, slice):
        raise InputError(f"{what} must be a slice, got {chosen!r}")
    start, stop, step = chosen.indices(size)
    if step < 1 or stop <= start:
        raise InputError(f"{what}={chosen} chooses nothing of {size} with a step forwards")
    return slice(start, stop, step)


def _check_alike(folder, header, arrays):
    """The new trajectories fit into the store."""
    old = _header(folder)
    if old["ensemble"] is None:
        raise InputError(f"{folder.root} holds a single trajectory, not an ensemble to append to")
    if header["ensemble"] is None:
        raise InputError(
            "a single trajectory has no ensemble axis to append along; give its arrays a leading axis of 1"
        )
    for part in ("structure", "constants"):
        if old[part] != header[part]:
            raise InputError(f"{part} differ: {old[part]} in {folder.root}, {header[part]} in the new trajectories")
    for name, (axes, array) in arrays.items():
        stored = folder.array(name)
        skip = 1 if axes[:1] == ("trajectory",) else 0
        there, here = (stored.dtype, stored.shape[skip:]), (array.dtype, array.shape[skip:])
        if stored.ndim != array.ndim or there != here:
            raise InputError(
                f"{name} is {there[0]} {there[1]} in {folder.root}, {here[0]} {here[1]} in the new trajectories"
            )
    if arrays["ts"][1].ndim == 1 and not np.array_equal(folder.array("ts")[:], arrays["ts"][1]):
        raise InputError(f"ts differ between {folder.root} and the new trajectories")


def _check_free(path, overwrite):
    from kinema.motion.folder import is_folder

    recover(path)
    if not path.name:
        raise InputError(f"{str(path)!r} is not a name for a store")
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise InputError(f"{path} exists; overwrite=True replaces it")
        if path.is_symlink() or not is_folder(path):
            raise InputError(f"{path} exists and is not a store of Kinema; it will not be replaced")
