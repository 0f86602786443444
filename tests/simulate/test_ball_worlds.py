"""Named worlds of balls: their starts, their bounds, and what they refuse."""

import doctest

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema import simulate
from kinema.errors import InputError
from kinema.simulate import ball_starts, ball_worlds, balls


@pytest.mark.parametrize("module", [ball_starts, ball_worlds, balls])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_unequal_masses_share_the_energy(key):
    """Equipartition: E m v^2 = M / (2 n) for every component, at the first and the last frame."""
    traj = simulate.collisions(mass=(1.0, 3.0)).simulate(4096, key=key)
    kinetic = np.array([1.0, 3.0])[:, None] * np.asarray(traj.states["v"], np.float64)[:, [0, -1]] ** 2
    assert_within_error(kinetic.mean(0), 1.0, standard_error=kinetic.std(0) / 64)


def test_expected_hits_are_those_of_a_dilute_gas(key):
    """Two balls in this box are nearly one."""
    world = simulate.collisions(mass=(1.0, 3.0))
    hits = float(world.simulate(4096, key=key).constants["hits"].mean())
    assert abs(ball_worlds.expected_hits(world, 0.75) / hits - 1) < 0.15


def test_speed_range(key):
    state = simulate.collisions(balls=3, radius=0.05, energy=(0.5, 2.0)).init(key)
    speed = jnp.linalg.norm(state["v"], axis=-1)
    assert bool(((speed >= 0.5) & (speed <= 2.0)).all())


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


def start(x):
    return {"x": jnp.array(x), "v": jnp.zeros((2, 2))}


def flow(x, ts=(0.1,), y=None, gravity=0.0):
    x = x if y is None else [[x[0][0], y[0]], [x[1][0], y[1]]]
    return simulate.collisions(gravity=gravity).flow(start(x), ts)


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
        (lambda: simulate.parabola(speed=(3.0, 2.0)), "speed must be"),
        (lambda: simulate.head_on(radius=2.4), "8 frames"),
        (lambda: jax.vmap(lambda r: simulate.collisions(radius=r).radius)(jnp.ones(2)), "max_events must be given"),
        (lambda: simulate.collisions().simulate(0, key=jr.key(0)), "n must be positive"),
        (lambda: simulate.collisions().flow({"x": jnp.array(INSIDE)}, [0.1]), "velocities"),
        (lambda: flow([[0.4, 0.5], [0.5, 0.5]]), "balls 0 and 1 overlap"),
        (lambda: flow([[0.2, 0.5], [0.8, 1.0]]), "ball 1 is outside"),
        (lambda: flow([[0.2, 0.5], [np.nan, 0.5]]), "ball 1 has a number that is not finite"),
        (lambda: flow(INSIDE, ts=[0.2, 0.1]), "ts must increase"),
        (lambda: flow(INSIDE, ts=[0.1, np.nan]), "finite"),
        (lambda: flow(INSIDE, y=(0.12, 0.5), gravity=1.0), "ball 0 rests on the floor"),
        (lambda: simulate.collisions().events(start(INSIDE), -1.0), "t1 must be positive"),
    ],
)
def test_refuses(act, says):
    with pytest.raises(InputError, match=says):
        act()
