"""Motion that has happened: times, states, numbers that belong to the whole, and where it came from."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree, Real, Shaped

from kinema.errors import InputError, NotFinite
from kinema.motion import trees


class Interpolant(eqx.Module):
    """State at any time of a run, from the solver's own polynomials."""

    path: Any  # diffrax.DenseInterpolation
    unpack: Callable[[Any], PyTree] = eqx.field(static=True)

    def __call__(self, t: Any) -> PyTree:
        return self.unpack(self.path.evaluate(t))


class Trajectory(eqx.Module):
    """One trajectory, or an ensemble of trajectories that share their times.

    >>> traj = Trajectory(jnp.arange(3.0), {"x": jnp.zeros((8, 3, 2))}, {"mass": jnp.ones(8)}, {"world": "drift"})
    >>> traj.ensemble, len(traj), traj[0].states["x"].shape
    (8, 3, (3, 2))

    Leaves of `states` are (frames, ...) for one trajectory and (ensemble, frames, ...) for an ensemble; the shapes tell
    which. Where both would fit it is an ensemble, unless `single` is true. `jax.vmap` over a function that returns a
    trajectory gives an ensemble too.

    Args:
        ts: (frames,) times; (ensemble, frames) if each trajectory has its own, as `jax.vmap` makes them.
        states: PyTree of arrays.
        constants: numbers without time, by name: mass, label, number of hits. Leading axis of an ensemble: its size.
        meta: what can be written as JSON: world, parameters, units, seed, version. Equal copies at every access.
        single: True for one trajectory, False for an ensemble, None to read it off the shapes.
        interpolant: state at any time between; not stored.

    Raises:
        InputError: shapes do not agree, the leaf is named; `meta` is not JSON.
    """

    ts: Real[Array, "*ensemble frames"]
    states: PyTree[Shaped[Array, "..."]]
    constants: dict[str, Shaped[Array, "..."]]
    interpolant: Interpolant | None
    single: bool = eqx.field(static=True)
    meta_json: str = eqx.field(static=True)  # text, because what is static must be hashable

    def __init__(
        self,
        ts: Any,
        states: PyTree,
        constants: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        *,
        single: bool | None = None,
        interpolant: Interpolant | None = None,
    ):
        self.ts = jnp.asarray(ts)
        self.states = jax.tree.map(jnp.asarray, states)
        self.constants = {name: jnp.asarray(value) for name, value in (constants or {}).items()}
        self.interpolant = interpolant
        self.meta_json = _json(meta)
        if self.ts.ndim not in (1, 2) or not self.ts.size:
            raise InputError(f"ts must have shape (frames,) or (ensemble, frames), got {self.ts.shape}")
        leaves = trees.leaf_names(self.states)
        if not leaves:
            raise InputError("states has no arrays")
        self.single = not _is_ensemble(leaves, self.ts) if single is None else single
        _check_shapes(leaves, self.constants, self.ts, self.single)

    @property
    def ensemble(self) -> int | None:
        """How many trajectories; None for a single one without ensemble axis."""
        if self.single and self.ts.ndim == 1:
            return None
        return jax.tree.leaves(self.states)[0].shape[0]

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.meta_json)

    def __len__(self) -> int:
        """Number of frames."""
        return self.ts.shape[-1]

    def __getitem__(self, index: Any) -> "Trajectory":
        """One trajectory of the ensemble (an integer), or an ensemble of some (a slice, integers or booleans).

        Raises:
            InputError: no ensemble axis, or not so many trajectories.
        """
        size = self.ensemble
        if size is None:
            raise InputError("this is a single trajectory, without an ensemble to choose from")
        one = np.ndim(index) == 0 and not isinstance(index, slice)
        if not isinstance(index, (slice, Tracer)):
            index = _checked(index, size)
        parts = (self.ts if self.ts.ndim > 1 else None, self.states, self.constants, self.interpolant)
        ts, states, constants, interpolant = jax.tree.map(lambda x: x[index], parts)
        ts = self.ts if ts is None else ts
        return Trajectory(ts, states, constants, self.meta, single=one, interpolant=interpolant)

    def __iter__(self) -> Iterator["Trajectory"]:
        """The trajectories of the ensemble, one by one."""
        if self.ensemble is None:
            raise InputError("this is a single trajectory, without an ensemble to go through")
        return (self[i] for i in range(self.ensemble))

    def interpolate(self, t: Any) -> PyTree:
        """The state at a time `t`, or states at times of shape (m,), with the accuracy of the solver.

        Raises:
            InputError: the trajectory was made without `dense=True`, is an ensemble (use `jax.vmap`), or t is outside.
        """
        if self.interpolant is None:
            raise InputError("no dense output was kept; integrate with dense=True")
        if self.ts.ndim > 1:
            raise InputError(
                "interpolate is for one trajectory; jax.vmap(lambda traj: traj.interpolate(t))(traj) for an ensemble"
            )
        if not isinstance(t, Tracer) and not isinstance(self.ts, Tracer):
            ends = np.asarray(self.ts)[[0, -1]]
            if not np.all((ends.min() <= np.asarray(t)) & (np.asarray(t) <= ends.max())):
                raise InputError(f"t must be within [{ends.min()}, {ends.max()}], got {t}")
        t = jnp.asarray(t, self.ts.dtype)
        return jax.vmap(self.interpolant)(t) if t.ndim else self.interpolant(t)

    def check(self) -> "Trajectory":
        """This trajectory, if all its numbers are finite.

        Raises:
            NotFinite: NaN or infinity; the leaf and its row are named.
        """
        bad = trees.first_not_finite({"ts": self.ts, "states": self.states, "constants": self.constants})
        if bad is not None:
            row = "frame" if self.ensemble is None or bad[0] == "ts" else "trajectory"
            raise NotFinite(f"{bad[0]} is NaN or infinite in {row} {bad[1]}")
        return self

    def save(self, path: str | os.PathLike, overwrite: bool = False) -> None:
        """Write to a Zarr store; see `kinema.motion.store.save`."""
        from kinema.motion import store

        store.save(path, self, overwrite=overwrite)

    @staticmethod
    def load(path: str | os.PathLike, ensemble: slice | None = None, frames: slice | None = None) -> "Trajectory":
        """Read from a Zarr store, wholly or in part; see `kinema.motion.store.load`."""
        from kinema.motion import store

        return store.load(path, ensemble=ensemble, frames=frames)


def _is_ensemble(leaves, ts):
    if ts.ndim > 1:
        return True
    sizes = {x.shape[0] if x.ndim > 1 and x.shape[1] == len(ts) else None for x in leaves.values()}
    return len(sizes) == 1 and None not in sizes


def _check_shapes(leaves, constants, ts, single):
    if single and ts.ndim > 1:
        raise InputError(f"a single trajectory has ts of shape (frames,), got {ts.shape}")
    frames = ts.shape[-1]
    first = ts if ts.ndim > 1 else next(iter(leaves.values()))
    size = first.shape[0] if first.ndim else 0
    lead, want = (frames,), f"({frames} frames, ...)"
    if not single:
        lead, want = (size, frames), f"({size} trajectories, {frames} frames, ...)"
    for name, x in leaves.items():
        if x.shape[: len(lead)] != lead:
            raise InputError(f"states: the leaf {name!r} must have shape {want}, got {x.shape}")
    for name, x in constants.items():
        if not single and x.shape[:1] != (size,):
            raise InputError(f"constants[{name!r}] must have a leading axis of {size} trajectories, got {x.shape}")


def _checked(index, size):
    index = np.asarray(index)
    if index.dtype.kind == "b":
        if index.shape != (size,):
            raise InputError(f"a boolean index must have shape ({size},), got {index.shape}")
        return np.flatnonzero(index)
    if index.dtype.kind not in "iu" or index.ndim > 1:
        raise InputError(
            f"index the ensemble by an integer, a slice or a list of them, got {index.dtype} of {index.ndim} axes"
        )
    if index.size and not (index.min() >= -size and index.max() < size):
        raise InputError(f"index {index.min() if index.min() < -size else index.max()} of an ensemble of {size}")
    return index


def _json(meta):
    try:
        return json.dumps(dict(meta or {}), allow_nan=False, default=_plain, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"meta must be JSON (text, finite numbers, lists, dictionaries): {error}") from error


def _plain(value):
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and not isinstance(value, Tracer):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
