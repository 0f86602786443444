"""Noisy, partly hidden motion from a file, for `kinema steer --observed`."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kinema.errors import InputError
from kinema.generate.run import SampleSpec
from kinema.motion import Trajectory
from kinema.motion.readers import Dataset, dataset, npz, read
from kinema.steer.restoration import Observed

UNSEEN = 1e9  # noise of an array that the file does not have


def read_observed(file: Path, sample: SampleSpec, noise: dict[str, Any]) -> Observed:
    """The motion in a file as an observation of the states that a run generates.

    A frame is hidden where any number is NaN (in .npz and .zarr), or where the array `seen` (n, frames) is 0. The
    standard deviation of the noise is `noise`, else `meta["noise"]`. States that the file does not have count as never
    seen.

    Raises:
        InputError: names or shapes of another motion than the run's; no noise given.
    """
    data, visible = _with_gaps(file)
    arrays = data.arrays if isinstance(data.arrays, dict) else {"x": data.arrays}
    known, shape = sample.names or ("x",), sample.shape[:-1] if sample.names else sample.shape
    for name, array in arrays.items():
        if name not in known:
            raise InputError(f"{file} holds {name!r}; the run's states are {', '.join(known)}")
        if array.shape[1:] != shape:
            raise InputError(
                f"{name} in {file} has shape {array.shape}; the run's motion is (n, {', '.join(map(str, shape))})"
            )
    levels = dict(data.meta.get("noise") or {}) | noise
    for name in levels:
        if name not in known:
            raise InputError(f"--noise {name} is none of the run's states {', '.join(known)}")
    for name in arrays:
        if name not in levels:
            raise InputError(f"how noisy is {name}? Give its standard deviation: --noise {name}=0.05")
        if not isinstance(levels[name], int | float):
            raise InputError(f"--noise {name} must be a number, got {levels[name]!r}")
    seen = visible & (np.asarray(data.constants["seen"]) > 0 if "seen" in data.constants else True)
    unseen = np.zeros((len(data), *shape))
    states = {name: jnp.asarray(arrays.get(name, unseen), jnp.float32) for name in known}
    noise = {name: float(levels[name]) if name in arrays else UNSEEN for name in known}
    return Observed(states, jnp.asarray(seen), noise)


def some(observed: Observed, rows: np.ndarray) -> Observed:
    """The motions `rows` of an observation."""
    return Observed({name: array[rows] for name, array in observed.states.items()}, observed.seen[rows], observed.noise)


def _with_gaps(file: Path) -> tuple[Dataset, np.ndarray]:
    """The data with 0 in place of NaN, and which frames (n, frames) had none."""
    known = _arrays(file)
    if known is None:
        data, gaps = read(file), {}
    else:
        arrays, meta = known
        gaps = {name: np.isnan(array) for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim > 1}
        data = dataset({name: np.where(gaps.get(name, False), 0, array) for name, array in arrays.items()}, meta)
    rows = next(iter(data.arrays.values())) if isinstance(data.arrays, dict) else data.arrays
    visible = np.ones(rows.shape[:2], bool)
    for gap in gaps.values():
        if gap.shape[:2] == visible.shape:
            visible &= ~gap.reshape(*visible.shape, -1).any(-1)
    return data, visible


def _arrays(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and meta of a file whose numbers may be NaN, which `read` refuses; None for the other kinds."""
    if file.suffix == ".npz" and file.is_file():
        return npz(file)
    if file.suffix == ".zarr" and (file / "zarr.json").is_file():
        motion = Trajectory.load(file)
        parts = {**motion.states, **{f"constants/{name}": array for name, array in motion.constants.items()}}
        lift = (lambda array: array[None]) if motion.ensemble is None else (lambda array: array)
        return {name: lift(np.asarray(array)) for name, array in parts.items()} | {
            "ts": np.asarray(motion.ts)
        }, motion.meta
    return None
