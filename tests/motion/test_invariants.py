"""Invariants along motions whose values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.motion import Invariant, Trajectory, along, change

ENERGY = Invariant(lambda state: 0.5 * jnp.sum(state["v"] ** 2), "J", 1e-4)
MOMENTUM = Invariant(lambda state: state["v"].sum(0), "kg m/s", 1e-4)


def frames(speeds):
    """Two bodies in the plane, at the given speeds along (3, 4)/5: energy speed², momentum 2 speed (3, 4)/5."""
    v = jnp.asarray(speeds, float)[..., None, None] * jnp.array([0.6, 0.8]) * jnp.ones((2, 1))
    return {"x": jnp.zeros_like(v), "v": v}


def test_values_along_time_and_ensemble():
    single = frames([1.0, 2.0, 3.0])
    assert np.allclose(along(ENERGY, single), [1, 4, 9])
    assert np.allclose(along(MOMENTUM, single), np.outer([2, 4, 6], [0.6, 0.8]))
    ensemble = frames([[1.0, 2.0, 3.0], [0.0, 1.0, 0.5]])
    traj = Trajectory(jnp.arange(3.0), ensemble)
    assert np.allclose(along(ENERGY, traj), [[1, 4, 9], [0, 1, 0.25]])
    assert np.allclose(along(ENERGY, ensemble, axes=2), along(ENERGY, traj))
    assert np.allclose(along(ENERGY, traj[1]), [0, 1, 0.25])
    assert along(MOMENTUM, traj).shape == (2, 3, 2)


def test_change_is_relative_to_large_values_and_absolute_for_small_ones():
    """Energies 9, 16, 4 change by 7 of 9; 0.01, 0.25, 0 by 0.24 of one unit."""
    traj = Trajectory(jnp.arange(3.0), frames([[3.0, 4.0, 2.0], [0.1, 0.5, 0.0]]))
    assert np.allclose(change(ENERGY, traj), [7 / 9, 0.24])
    assert np.allclose(change(MOMENTUM, traj), [2 / 6, 0.8])
    assert float(change(ENERGY, traj[0])) == pytest.approx(7 / 9)
    assert np.allclose(change(ENERGY, frames([3.0, 3.0])), 0)


def test_matrices_and_any_axes():
    stress = Invariant(lambda state: jnp.outer(state["v"][0], state["v"][0]))
    assert along(stress, frames([1.0, 2.0])).shape == (2, 2, 2)
    assert float(change(stress, frames([1.0, 2.0]))) == pytest.approx(3.0)
    assert change(stress, frames(np.ones((4, 5, 2))), axes=3).shape == (4, 5)


def test_parameters_of_the_function_are_leaves():
    """So that worlds that differ from trajectory to trajectory can be mapped over."""

    def kinetic(mass, state):
        return mass * jnp.sum(state["v"] ** 2) / 2

    def one(mass, states):
        return along(Invariant(jax.tree_util.Partial(kinetic, mass)), states)

    values = jax.vmap(one)(jnp.array([1.0, 3.0]), frames([[1.0, 2.0], [1.0, 2.0]]))
    assert np.allclose(values, [[1, 4], [3, 12]])


def test_inputs():
    assert (ENERGY.unit, ENERGY.tolerance) == ("J", 1e-4) and float(ENERGY({"v": jnp.ones(2)})) == 1.0
    with pytest.raises(InputError, match="negative"):
        Invariant(lambda state: 0.0, "J", -1.0)
    with pytest.raises(InputError, match="2 leading axes"):
        along(ENERGY, {"v": jnp.ones(3)}, axes=2)
