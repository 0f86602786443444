"""Simulation sets in The Well's HDF5 layout.

Channels come last in the file and first in Kinema: a vector field is (N, frames, components, grid...). What does not
vary with time becomes a constant (N, ...).   [The Well: Ohana et al. 2024]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.motion import readers

_FIELDS = ("t0_fields", "t1_fields", "t2_fields")


def is_well(file: Any) -> bool:
    """Whether an open HDF5 file has the layout."""
    return "n_spatial_dims" in file.attrs and "dimensions" in file and any(group in file for group in _FIELDS)


def read(file: Any, meta: Mapping[str, Any]) -> "readers.Dataset":
    """The fields and scalars of an open HDF5 file.

    An axis that the attributes `sample_varying` and `dim_varying` leave out is filled by repetition.

    Raises:
        InputError: an array that does not fit its attributes, or trajectories with different times; see `Dataset`.
    """
    count, rank = int(file.attrs["n_trajectories"]), int(file.attrs["n_spatial_dims"])
    grid = [len(array(_child(file["dimensions"], name))) for name in _names(file["dimensions"].attrs["spatial_dims"])]
    moving, fixed = {}, {}
    for order, group in enumerate(_FIELDS):
        for name in _names(file[group].attrs["field_names"]) if group in file else ():
            item = _child(file[group], name)
            target = moving if item.attrs["time_varying"] else fixed
            target[name] = _field(name, item, count, grid, order, rank)
    for name in _names(file["scalars"].attrs["field_names"]) if "scalars" in file else ():
        item = _child(file["scalars"], name)
        target = moving if item.attrs["time_varying"] else fixed
        target[name] = _field(name, item, count, [], 0, rank)
    about = {"grid": str(file.attrs.get("grid_type", "")), "dataset": str(file.attrs.get("dataset_name", ""))}
    return readers.Dataset(moving, None, _times(file), fixed, {**meta, **about})


def array(item: Any) -> np.ndarray:
    """An HDF5 array whose numbers lie in this very file.

    Raises:
        InputError: they lie elsewhere.
    """
    if item.external or item.is_virtual:
        raise InputError(f"{item.file.filename}: {item.name} keeps its numbers in another file, which is not read")
    return np.asarray(item[()])


def _field(name, item, count, grid, order, rank):
    """(N, [frames,] components..., grid...)."""
    attrs = item.attrs
    x = array(item)
    varies = [bool(v) for v in np.atleast_1d(attrs["dim_varying"])] if grid else []
    lead = int(bool(attrs["sample_varying"])) + int(bool(attrs["time_varying"]))
    if x.ndim != lead + sum(varies) + order or len(varies) != len(grid):
        raise InputError(f"{name} has shape {x.shape}, which does not fit its attributes")
    if not attrs["sample_varying"]:
        x = x[None]
    lead = 2 if attrs["time_varying"] else 1
    for axis, vary in enumerate(varies, start=lead):
        x = x if vary else np.expand_dims(x, axis)
    want = (count, *(x.shape[1:2] if lead == 2 else ()), *grid, *[rank] * order)
    try:
        x = np.broadcast_to(x, want)
    except ValueError:
        raise InputError(f"{name} has shape {x.shape} after filling in, the file says {want}") from None
    components = range(x.ndim - order, x.ndim)
    return np.ascontiguousarray(np.moveaxis(x, components, range(lead, lead + order)))


def _times(file):
    ts = array(_child(file["dimensions"], "time"))
    if ts.ndim == 2:
        if not (ts == ts[:1]).all():
            raise InputError(f"{file.filename}: trajectories with different times cannot be read together")
        ts = ts[0]
    return ts


def _child(group, name):
    import h5py

    if "/" in name or not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{group.file.filename}: {group.name}/{name} is missing, or a link to somewhere else")
    return group[name]


def _names(value):
    return [name.decode() if isinstance(name, bytes) else str(name) for name in np.atleast_1d(value)]
