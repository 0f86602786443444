"""The world of hard balls: starts, flow both ways, repair, what it refuses."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema import simulate
from kinema.errors import BudgetExhausted, InputError
from kinema.motion import along
from kinema.simulate import balls


@pytest.fixture(scope="module")
def collisions():
    return simulate.collisions()


@pytest.fixture(scope="module")
def traj(collisions):
    return collisions.simulate(4096, key=jr.key(7))


def test_fixed_energy_start_is_stationary(traj):
    """(v_1, v_2) is uniform on a sphere of radius^2 2 in 4 dimensions: E v^2 = 1/2, E v^4 = 3 * 4 / (4 * 6) = 1/2."""
    n, v, x = 4096, np.asarray(traj.states["v"], np.float64), np.asarray(traj.states["x"], np.float64)
    for k in range(16):
        assert_within_error(v[:, k].mean(0), 0, standard_error=(0.5 / n) ** 0.5)
        assert_within_error((v[:, k] ** 2).mean(0), 0.5, standard_error=(0.25 / n) ** 0.5)
        fourth = v[:, k] ** 4
        assert_within_error(fourth.mean(0), 0.5, standard_error=fourth.std(0) / n**0.5)
        assert_within_error(x[:, k].mean(0), 0.5, standard_error=x[:, k].std(0) / n**0.5)
        # the same law at every frame, the first of other trajectories standing for it
        half, spread = n // 2, x[:, 0].var(0)
        square = (x - 0.5) ** 2
        error = np.sqrt(square[:, k].var(0) * 2 / half)
        assert_within_error(square[:half, k].mean(0) - square[half:, 0].mean(0), 0, standard_error=error)
        assert (spread > 0).all()


def test_the_demo_has_known_hits_and_speed(traj):
    assert_within_error(traj.constants["hits"].mean(), 3.38, standard_error=0.03)
    assert_within_error((traj.constants["pair_hits"] > 0).mean(), 0.555, standard_error=0.008)
    assert_within_error(jnp.linalg.norm(traj.states["v"], axis=-1).mean(), 0.942, standard_error=0.003)


def test_trajectory_says_where_it_comes_from(traj, collisions):
    assert traj.ensemble == 4096 and len(traj) == 16 and traj.meta["units"]["x"] == "length"
    again = simulate.make(traj.meta["world"], **traj.meta["parameters"])
    assert again.origin == collisions.origin and again.max_events == collisions.max_events
    assert traj.constants["radius"].shape == traj.constants["mass"].shape == (4096, 2)
    change = along(collisions.invariants["energy"], traj) / collisions.known_energy
    assert float(jnp.abs(change - 1).max()) < collisions.invariants["energy"].tolerance


def test_flow_runs_both_ways(traj, collisions):
    middle = jax.vmap(lambda s: collisions.flow(s, collisions.ts - collisions.ts[8]))
    out = jax.jit(middle)(jax.tree.map(lambda x: x[:256, 8], traj.states))
    for name in ("x", "v"):
        gap = jnp.abs(out[name] - traj.states[name][:256]).max((1, 2, 3))
        assert float(jnp.quantile(gap, 0.95)) < 1e-5  # a hit at a frame, or chaos, for the rest


def test_time_reversal_in_double_precision(x64):
    start = {"x": jnp.array([[0.2, 0.3], [0.7, 0.6]]), "v": jnp.array([[0.8, 0.9], [-0.3, 0.4]])}
    for gravity in (0.0, 0.7):
        world = simulate.collisions(gravity=gravity, max_events=90)
        there = jax.tree.map(lambda x: x[0], world.flow(start, [2.5]))
        back = jax.tree.map(lambda x: x[0], world.flow(there, [-2.5]))
        assert int(world.replay(start, [2.5]).pair_hits) >= 1
        for name in ("x", "v"):
            np.testing.assert_allclose(back[name], start[name], atol=1e-10)


def test_events_are_the_hits_in_order(collisions):
    start = {"x": jnp.array([[0.5, 0.5], [0.8, 0.5]]), "v": jnp.array([[1.0, 0.0], [0.0, 0.0]])}
    found = collisions.events(start, 0.75)
    kinds = [(event.kind, event.i, event.j) for event in found]
    assert kinds == [("pair", 0, 1), ("right", 1, -1), ("pair", 0, 1), ("left", 0, -1)]
    np.testing.assert_allclose([event.time for event in found], [0.06, 0.14, 0.22, 0.66], atol=1e-6)
    falling = simulate.collisions(balls=1, gravity=2.0)
    drop = {"x": jnp.array([[0.5, 0.52]]), "v": jnp.array([[0.0, 0.0]])}
    assert [event.kind for event in falling.events(drop, 0.7)] == ["floor"]


def test_same_key_same_bits_and_no_second_compilation(collisions, traj):
    again = collisions.simulate(4096, key=jr.key(7))
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(traj)))
    collisions.flow(jax.tree.map(lambda x: x[0, 0], traj.states), [0.1, 0.2])
    size = balls._run._cache_size()
    out = collisions.flow(jax.tree.map(lambda x: x[1, 0], traj.states), [0.3, 0.7])
    assert balls._run._cache_size() == size
    mapped = jax.vmap(lambda state: collisions.flow(state, [0.3, 0.7]))(jax.tree.map(lambda x: x[:5, 0], traj.states))
    np.testing.assert_allclose(mapped["x"][1], out["x"], atol=1e-6)


def test_retract_leaves_nothing_to_refuse(key, collisions, traj):
    key_place, key_speed = jr.split(key)
    x = jr.uniform(key_place, (4096, 2, 2), minval=-0.1, maxval=1.1)
    v = jr.normal(key_speed, (4096, 2, 2))
    retract = jax.jit(jax.vmap(collisions.retract))
    out = retract({"x": x, "v": v})
    collisions.check(out)
    contacts, energy = jax.jit(jax.vmap(lambda s: (collisions.contacts(s), collisions.energy(s))))(out)
    assert float(contacts.walls.min()) > 1e-4 and float(contacts.pairs.min()) > 1e-4
    np.testing.assert_allclose(energy, 1.0, rtol=1e-5)
    allowed = jax.tree.map(lambda x: x[:, 0], traj.states)
    same = retract(allowed)
    np.testing.assert_allclose(same["v"], allowed["v"], rtol=1e-5)
    assert float(jnp.quantile(jnp.abs(same["x"] - allowed["x"]).max((1, 2)), 0.95)) == 0


@pytest.mark.parametrize(
    ("x", "moved"),
    [
        ([[0.4, 0.5], [0.6, 0.5]], [[0.37988, 0.5], [0.62012, 0.5]]),  # both have room: half each
        ([[0.12, 0.5], [0.3, 0.5]], [[0.12024, 0.5], [0.36048, 0.5]]),  # one at the wall: the other takes the rest
        ([[0.5, 0.5], [0.5, 0.5]], [[0.37988, 0.5], [0.62012, 0.5]]),  # one point: along x
    ],
)
def test_retract_pushes_balls_apart_along_their_line(collisions, x, moved):
    state = {"x": jnp.array(x), "v": jnp.ones((2, 2))}
    np.testing.assert_allclose(collisions.retract(state)["x"], moved, atol=2e-4)


def test_retract_of_many(key):
    world = simulate.collisions(balls=4, radius=(0.05, 0.1, 0.15, 0.1), max_events=10)
    x = jr.uniform(key, (1024, 4, 2), minval=-0.1, maxval=1.1)
    contacts = jax.jit(jax.vmap(lambda x: world.contacts(world.retract({"x": x, "v": x}))))(x)
    assert float(contacts.walls.min()) > 5e-5
    assert float((contacts.pairs.min((1, 2)) > 5e-5).mean()) > 0.99


def test_check_names_frame_and_ball(collisions, traj):
    states = jax.tree.map(lambda x: x[0], traj.states)
    with pytest.raises(InputError, match="ball 1 is outside the box in state 5"):
        collisions.check(states | {"x": states["x"].at[5, 1, 0].set(0.05)})


def test_too_many_hits_are_an_error_that_names_the_trajectory(key):
    world = simulate.collisions(max_events=2)
    with pytest.raises(BudgetExhausted, match=r"trajectory \d+ has more hits"):
        world.simulate(64, key=key)
    lively = {"x": jnp.array([[0.2, 0.5], [0.8, 0.5]]), "v": jnp.array([[9.0, 7.0], [1.0, 2.0]])}
    with pytest.raises(BudgetExhausted, match="max_events=2"):
        world.flow(lively, [0.5])
    with pytest.raises(RuntimeError, match="max_events=2"):
        jax.block_until_ready(jax.jit(lambda s: world.flow(s, [0.5]))(lively))
