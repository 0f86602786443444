"""What a law conserves: named functions of the state, with unit and tolerance."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.motion.trajectory import Trajectory


class Invariant(eqx.Module):
    """A function of one state that keeps its value along every motion of a law.

    >>> energy = Invariant(lambda state: 0.5 * jnp.sum(state["v"] ** 2), "J", 1e-4)
    >>> along(energy, {"v": jnp.array([[1.0, 0.0], [0.0, 2.0]])}).tolist()
    [0.5, 2.0]

    Args:
        fn: state -> scalar or vector.
        unit: its physical unit, "1" if it has none.
        tolerance: the largest `change` that counts as conserved.

    Raises:
        InputError: fn cannot be called; tolerance negative.
    """

    fn: Callable[[PyTree], Any]
    unit: str = eqx.field(default="1", static=True)
    tolerance: float = eqx.field(default=1e-5, static=True)

    def __check_init__(self):
        if not callable(self.fn):
            raise InputError(f"fn must be a function of the state, got {type(self.fn).__name__}")
        if not self.tolerance >= 0:
            raise InputError(f"tolerance must not be negative, got {self.tolerance}")

    def __call__(self, state: PyTree) -> Float[Array, "..."]:
        return jnp.asarray(self.fn(state), float)


def along(invariant: Invariant, states: PyTree | Trajectory, *, axes: int | None = None) -> Float[Array, "..."]:
    """Its values along a motion: `invariant` mapped over the leading axes of `states`.

    (frames, ...) or (ensemble, frames, ...), as the trajectory is. For plain states `axes` says how many
    leading axes to map over: 1, time alone, unless given.

    Raises:
        InputError: a leaf has fewer axes.
    """
    if isinstance(states, Trajectory):
        axes = 1 if states.ensemble is None else 2
        states = states.states
    axes = 1 if axes is None else axes
    if any(jnp.ndim(x) < axes for x in jax.tree.leaves(states)):
        raise InputError(f"every leaf of states must have {axes} leading axes of time and ensemble")
    f = invariant.__call__
    for _ in range(axes):
        f = jax.vmap(f)
    return f(states)


def change(invariant: Invariant, states: PyTree | Trajectory, *, axes: int | None = None) -> Float[Array, "..."]:
    """The largest departure from the first frame of each trajectory: max over time of |I(t) - I(0)| / max(1, |I(0)|).

    Relative for large values, absolute for small ones (in the invariant's unit); |.| is the Euclidean length.
    """
    values = along(invariant, states, axes=axes)
    time = values.ndim - 1 - jnp.ndim(jax.eval_shape(invariant, _first(states, axes)))
    values = jnp.moveaxis(values, time, 0)
    values = values.reshape(*values.shape[: time + 1], -1)
    size, gap = jnp.linalg.norm(values[0], axis=-1), jnp.linalg.norm(values - values[0], axis=-1)
    return jnp.max(gap, axis=0) / jnp.maximum(1.0, size)


def _first(states, axes):
    if isinstance(states, Trajectory):
        axes, states = (1 if states.ensemble is None else 2), states.states
    return jax.tree.map(lambda x: x[(0,) * (1 if axes is None else axes)], states)
