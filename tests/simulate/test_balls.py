"""The world of hard balls: starts, flow both ways, repair, what it refuses."""

import doctest

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema import simulate
from kinema.errors import BudgetExhausted, InputError
from kinema.motion import along
from kinema.simulate import ball_starts, ball_worlds, balls, render, world


@pytest.mark.parametrize("module", [ball_starts, ball_worlds, balls, render])
def test_examples(module):
    names = {"jax": jax, "jnp": jnp, "jr": jr}
    assert doctest.testmod(module, extraglobs=names).failed == 0


@pytest.fixture(scope="module")
def collisions():
    return simulate.collisions()


@pytest.fixture(scope="module")
def traj(collisions):
    return collisions.simulate(4096, key=jr.key(7))


def first(traj, i, frame=0):
    return jax.tree.map(lambda x: x[i, frame], traj.states)


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


def test_unequal_masses_share_the_energy(key):
    """Equipartition: E m v^2 = M / (2 n) for every component, at the first and the last frame."""
    traj = simulate.collisions(mass=(1.0, 3.0), frames=12, dt=0.2, max_events=200).simulate(4096, key=key)
    kinetic = np.array([1.0, 3.0])[:, None] * np.asarray(traj.states["v"], np.float64)[:, [0, -1]] ** 2
    assert_within_error(kinetic.mean(0), 1.0, standard_error=kinetic.std(0) / 64)


def test_one_ball_is_uniform_in_its_box(key):
    """E (x - 1/2)^2 = (1 - 2 r)^2 / 12, at the last frame."""
    traj = simulate.collisions(balls=1).simulate(4096, key=key)
    square = (np.asarray(traj.states["x"][:, -1, 0], np.float64) - 0.5) ** 2
    assert_within_error(square.mean(0), (1 - 0.24) ** 2 / 12, standard_error=square.std(0) / 64)


def test_the_demo_has_known_hits_and_speed(traj):
    assert_within_error(traj.constants["hits"].mean(), 3.38, standard_error=0.03)
    assert_within_error((traj.constants["pair_hits"] > 0).mean(), 0.555, standard_error=0.008)
    assert_within_error(jnp.linalg.norm(traj.states["v"], axis=-1).mean(), 0.942, standard_error=0.003)


def test_expected_hits_are_those_of_a_dilute_gas(traj, collisions):
    """Two balls in this box are nearly one."""
    assert abs(ball_worlds.expected_hits(collisions, 0.75) / float(traj.constants["hits"].mean()) - 1) < 0.15


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
    assert kinds == [("pair", 0, 1), ("right", 1, -1), ("pair", 0, 1)]
    np.testing.assert_allclose([event.time for event in found], [0.06, 0.14, 0.22], atol=1e-6)
    falling = simulate.collisions(balls=1, gravity=2.0)
    drop = {"x": jnp.array([[0.5, 0.52]]), "v": jnp.array([[0.0, 0.0]])}
    assert [event.kind for event in falling.events(drop, 0.7)] == ["floor"]


def test_same_key_same_bits_and_no_second_compilation(collisions):
    run = balls._run
    one, two = (collisions.simulate(64, key=jr.key(1)) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two)))
    collisions.flow(first(one, 0), [0.1, 0.2])
    size = run._cache_size()
    collisions.flow(first(one, 1), [0.3, 0.7])
    assert run._cache_size() == size


def test_retract_moves_little_and_leaves_nothing_to_refuse(key, collisions):
    keys = jr.split(key, 3)
    x = jr.uniform(keys[0], (512, 2, 2), minval=-0.1, maxval=1.1)
    v = jr.normal(keys[1], (512, 2, 2))
    out = jax.jit(jax.vmap(collisions.retract))({"x": x, "v": v})
    collisions.check(out)
    contacts = jax.vmap(collisions.contacts)(out)
    assert float(contacts.walls.min()) > 1e-4 and float(contacts.pairs.min()) > 1e-4
    np.testing.assert_allclose(jax.vmap(collisions.energy)(out), 1.0, rtol=1e-5)
    allowed = jax.vmap(collisions.init)(jr.split(keys[2], 64))
    np.testing.assert_allclose(jax.vmap(collisions.retract)(allowed)["v"], allowed["v"], rtol=1e-5)


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


def test_dense_retract(key):
    world = simulate.collisions(balls=8, radius=0.08, max_events=10)
    x = jr.uniform(key, (64, 8, 2))
    out = jax.jit(jax.vmap(world.retract))({"x": x, "v": jnp.ones((64, 8, 2))})
    assert float(jax.vmap(lambda s: world.contacts(s).pairs.min())(out).min()) > -1e-4 * 0.08


def test_launched_and_head_on_starts(key):
    thrown = simulate.parabola(radius=1.2).simulate(256, key=key)
    x, v = thrown.states["x"][:, :, 0], thrown.states["v"][:, :, 0]
    t = thrown.ts
    np.testing.assert_allclose(x[..., 1], x[:, :1, 1] - 1.25 * t**2, atol=2e-5)
    assert float(v[:, 0, 0].min()) > 1 and float(x[:, 0].min()) > 1.2 and float(x[:, 0].max()) < 8.8
    meeting = simulate.head_on(radius=(1.0, 0.6)).simulate(256, key=key)
    assert int(meeting.constants["pair_hits"].min()) == int(meeting.constants["hits"].max()) == 1
    turns = jnp.abs(jnp.diff(meeting.states["v"][:, :, 0, 0], axis=1)) > 1e-3
    assert int(turns.argmax(1).min()) >= 7 and int(turns.argmax(1).max()) <= 23


INSIDE = [[0.2, 0.5], [0.8, 0.5]]


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: simulate.collisions(balls=0), "balls must be a positive integer"),
        (lambda: simulate.collisions(radius=-0.1), "radius must be positive"),
        (lambda: simulate.collisions(mass=(1.0, 0.0)), "mass must be positive"),
        (lambda: simulate.collisions(dt=0.0), "dt must be positive"),
        (lambda: simulate.collisions(frames=0), "frames must be positive"),
        (lambda: simulate.collisions(gravity=-1.0), "gravity must not be negative"),
        (lambda: simulate.collisions(radius=0.5), "less than half the box"),
        (lambda: simulate.collisions(radius=(0.1, 0.1, 0.1)), "one number or 2"),
        (lambda: simulate.collisions(balls=12, radius=0.12), "do not fit"),
        (lambda: simulate.collisions(energy="fixd"), "energy must be 'fixed'"),
        (lambda: simulate.collisions(energy=(2.0, 1.0)), "low < high"),
        (lambda: simulate.collisions(max_events=-1), "max_events"),
        (lambda: simulate.parabola(speed=3.0), "speed must be"),
        (lambda: simulate.head_on(radius=2.4), "8 frames"),
        (lambda: jax.vmap(lambda r: simulate.collisions(radius=r).radius)(jnp.ones(2)), "max_events must be given"),
        (lambda: simulate.collisions().simulate(0, key=jr.key(0)), "n must be positive"),
        (lambda: simulate.collisions().flow({"x": jnp.array(INSIDE)}, [0.1]), "x.* and .*v"),
        (lambda: flow([[0.4, 0.5], [0.5, 0.5]]), "balls 0 and 1 overlap"),
        (lambda: flow([[0.2, 0.5], [0.8, 1.0]]), "ball 1 is outside"),
        (lambda: flow(INSIDE, ts=[0.2, 0.1]), "ts must increase"),
        (lambda: flow(INSIDE, ts=[0.1, np.nan]), "finite"),
        (lambda: flow(INSIDE, y=(0.12, 0.5), gravity=1.0), "ball 0 rests on the floor"),
        (lambda: simulate.collisions().events(start(INSIDE), -1.0), "t1 must be positive"),
    ],
)
def test_refuses(act, says):
    with pytest.raises(InputError, match=says):
        act()


def start(x):
    return {"x": jnp.array(x), "v": jnp.zeros((2, 2))}


def flow(x, ts=(0.1,), y=None, gravity=0.0):
    x = x if y is None else [[x[0][0], y[0]], [x[1][0], y[1]]]
    return simulate.collisions(gravity=gravity).flow(start(x), ts)


def test_check_names_frame_and_ball(collisions, traj):
    states = jax.tree.map(lambda x: x[0], traj.states)
    with pytest.raises(InputError, match="ball 1 is outside the box in state 5"):
        collisions.check(states | {"x": states["x"].at[5, 1, 0].set(0.05)})


def test_too_many_hits_are_an_error_that_names_the_trajectory(key):
    world = simulate.collisions(max_events=2)
    with pytest.raises(BudgetExhausted, match=r"trajectory \d+ has more hits"):
        world.simulate(64, key=key)
    lively = {"x": jnp.array(INSIDE), "v": jnp.array([[9.0, 7.0], [1.0, 2.0]])}
    with pytest.raises(BudgetExhausted, match="max_events=2"):
        world.flow(lively, [0.5])
    with pytest.raises(RuntimeError, match="max_events=2"):
        jax.block_until_ready(jax.jit(lambda s: world.flow(s, [0.5]))(lively))
