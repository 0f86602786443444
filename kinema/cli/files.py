"""Motion in and out of files, for the verbs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kinema.errors import InputError
from kinema.motion import Trajectory, trees
from kinema.motion.disk import check_name
from kinema.motion.readers import Dataset
from kinema.motion.weights import atomic_file

ENDINGS = (".zarr", ".npz")


def join(parts: Sequence[Trajectory], meta: dict[str, Any]) -> Trajectory:
    """Ensembles of the same motion as one, `meta` added to theirs."""
    states, constants = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *((p.states, p.constants) for p in parts))
    return Trajectory(parts[0].ts, states, constants, parts[0].meta | meta, single=False)


def write(path: Path, motion: Trajectory | Dataset, *, overwrite: bool) -> None:
    """Write samples as a store or, by the rule of `readers.read`, as `.npz`.

    Raises:
        InputError: samples without times for a store; states whose names an `.npz` cannot hold or that leave a folder.
    """
    if path.suffix == ".zarr":
        motion = motion if isinstance(motion, Trajectory) else motion.trajectory()
        motion.save(path, overwrite=overwrite)
        return
    data = Dataset.from_trajectory(motion) if isinstance(motion, Trajectory) else motion
    arrays = data.arrays if isinstance(data.arrays, dict) else {"x": data.arrays}
    taken = {"ts": data.ts, "labels": data.labels} | {f"constants/{k}": v for k, v in data.constants.items()}
    taken["meta"] = np.array(json.dumps(dict(data.meta), allow_nan=False))
    for name, array in arrays.items():
        check_name(name, "state")
        if name in taken or not isinstance(array, np.ndarray):
            raise InputError(f"states {sorted(trees.leaf_names(data.arrays))} do not fit into .npz; write a .zarr")
    named = {name: array for name, array in (arrays | taken).items() if array is not None}
    with atomic_file(path) as file:
        np.savez(file, **named)
