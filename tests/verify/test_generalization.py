"""Regimes hold what they say, and errors of known motion are known."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import simulate, verify
from kinema.errors import InputError
from kinema.motion import Trajectory

N = 64  # one number for all: one compilation a world
LEVELS = {"r1", "v1", "r1 r2", "v1 v2", "r1 v1", "r1 r2 v1 v2"}


@pytest.fixture(scope="module")
def collision():
    return verify.draw(verify.regimes("collision")["train"], N, key=jr.key(0))


def with_x(traj, x):
    return Trajectory(traj.ts, {"x": x}, single=False)


def test_all_levels_are_there():
    assert set(verify.regimes("uniform")) == {"train"} | {
        f"{s} {a}" for s in ("low", "high") for a in ("r", "v", "r v")
    }
    found = set(verify.regimes("collision"))
    assert {name.removeprefix("low ") for name in found if name.startswith("low")} == LEVELS
    assert {name.removeprefix("high ") for name in found if name.startswith("high")} == LEVELS - {"r1 r2 v1 v2"}
    assert {name for name in found if name.startswith("cross")} == {
        "cross r1 r2",
        "cross v1 v2",
        "cross r1 r2 v1 v2",
        "cross r2 r1 v1 v2",
    }


@pytest.mark.parametrize(
    ("world", "name", "radius", "speed"),
    [
        ("parabola", "low v", [(0.7, 1.4)], [(0.0, 0.8)]),
        ("collision", "cross r1 r2 v1 v2", [(0.3, 0.4), (1.7, 2.0)], [(0.0, 0.8), (4.5, 6.0)]),
    ],
)
def test_values_are_within_their_bands(key, world, name, radius, speed):
    traj = verify.draw(verify.regimes(world)[name], N, key=key)
    for values, bands in ((traj.constants["radius"], radius), (traj.constants["speed"], speed)):
        low, high = np.array(bands).T
        assert (values >= low).all() and (values <= high).all()
        assert (values.min(0) < low + 0.3 * (high - low)).all()


def test_two_balls_meet_in_time(collision):
    """On one height, from inside the picture, once, not before frame 8 and 8 frames before the end; density 1."""
    x, v = collision.states["x"], collision.states["v"]
    radius = collision.constants["radius"]
    assert bool((x[:, 0] >= radius[..., None]).all() and (x[:, 0] <= 10 - radius[..., None]).all())
    assert float(jnp.ptp(x[..., 1], axis=(1, 2)).max()) < 1e-5
    assert bool((v[:, 0, 0, 0] > 0).all() and (v[:, 0, 1, 0] < 0).all())
    turns = jnp.abs(jnp.diff(v[:, :, 0, 0], axis=1)) > 1e-4
    when = turns.argmax(1)
    assert int(turns.sum(1).max()) == 1 and int(when.min()) >= 7 and int(when.max()) <= 23
    np.testing.assert_allclose(collision.constants["mass"], np.pi * radius**2, rtol=1e-5)


def test_velocity_error_of_known_motion(collision):
    """Positions scaled by 1.1 have every velocity 10% too large."""
    truth = verify.velocity_error(collision, collision)
    assert truth.mean == truth.before == truth.after == truth.unseen == 0
    x, v = np.asarray(collision.states["x"]), np.asarray(collision.states["v"])
    error = verify.velocity_error(with_x(collision, 1.1 * collision.states["x"]), collision)
    radius = np.asarray(collision.constants["radius"])[:, None, :, None]
    inside = ((x >= radius) & (x <= 10 - radius)).all(-1)
    whole = inside[:, 1:] & inside[:, :-1] & ~(np.abs(np.diff(v, axis=1)) > 1e-3).any(-1)
    whole[:, :2] = False
    speed = np.abs(v[:, 1:, :, 0])
    np.testing.assert_allclose(error.mean, 0.1 * speed[whole].mean(), rtol=1e-3)
    assert error.before != error.after


def test_velocity_error_counts_gravity_as_no_hit(key):
    traj = verify.draw(verify.regimes("parabola")["train"], N, key=key)
    error = verify.velocity_error(with_x(traj, 1.1 * traj.states["x"]), traj)
    assert np.isnan(error.after) and error.mean == error.before > 0.1


def test_unseen_balls_are_counted_apart(collision):
    seen = jnp.ones(collision.states["x"].shape[:3], bool).at[:, 2::2].set(False)
    error = verify.velocity_error(with_x(collision, collision.states["x"]), collision, seen=seen)
    assert error.unseen == 1 and np.isnan(error.mean)


def test_gap_hole_and_flip(key):
    gap = verify.gap((1.0, 1.25), (3.75, 4.0))
    inner = verify.draw(gap["train"], N, key=key).constants["speed"]
    assert bool(((inner <= 1.25) | (inner >= 3.75)).all()) and 0.25 < float((inner < 2).mean()) < 0.75
    between = verify.draw(gap["test"], N, key=key).constants["speed"]
    assert bool(((between >= 1.25) & (between <= 3.75)).all())
    hole = verify.hole(1.25, 4.0)
    speed = verify.draw(hole["train"], N, key=key).constants["speed"]
    assert bool((speed.min(1) <= 1.25).all()) and float(speed.max()) > 2
    flip = verify.flip()
    right = [float((verify.draw(flip[name], N, key=key).states["v"][:, 0, 0, 0] > 0).mean()) for name in flip]
    assert right == [1.0, 0.5, 1.0]


def test_conflicts():
    conflict = verify.conflict("colour", "velocity")
    assert [(case.colour, case.speed[0][0]) for case in conflict.train] == [(0, (1.0, 2.5)), (1, (2.5, 4.0))]
    assert [(case.colour, case.speed[0][0]) for case in conflict.test] == [(0, (2.5, 4.0)), (1, (1.0, 2.5))]
    given = jnp.full(4, 3.0)
    # case 0: colour of the slow set, fast; the training case of that colour is slow: 1.5 units away
    np.testing.assert_allclose(conflict.shift("velocity", 0, given, given - 0.6), 0.4, rtol=1e-5)
    np.testing.assert_allclose(conflict.shift("velocity", 1, given, given - 0.6), -0.4, rtol=1e-5)
    np.testing.assert_allclose(conflict.shift("colour", 0, jnp.zeros(4), jnp.full(4, 0.1)), 0.1, rtol=1e-5)
    shapes = verify.conflict("shape", "size")
    assert [case.shape for case in shapes.train] == ["disc", "square"]
    assert shapes.train[1].radius == (((1.05, 1.4),),)


def test_parsed_truth_has_a_small_velocity_error(collision):
    """Films of 64 pixels, radii of each trajectory; the paper's parser has 0.010 at 256 pixels."""
    world, few = simulate.head_on(), collision[:6]
    render = jax.vmap(lambda x, radius: world.given({"radius": radius}).render({"x": x}, pixels=(64, 64)), (0, None))
    film = jax.jit(jax.vmap(render))(few.states["x"], few.constants["radius"])
    state, seen = simulate.parse(film, simulate.render.PALETTE[:2], world.dt, width=10.0)
    error = verify.velocity_error(with_x(few, state["x"]), few, seen=seen)
    assert 0 < error.mean < 0.02 and error.unseen == 0


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: verify.regimes("colision"), "did you mean 'collision'"),
        (lambda: verify.gap((1.0, 2.0)), "two or more"),
        (lambda: verify.gap((2.0, 3.0), (1.0, 1.5)), "increasing order"),
        (lambda: verify.hole(3.0, 2.0), "low must be below high"),
        (lambda: verify.conflict("color", "size"), "did you mean 'colour'"),
        (lambda: verify.conflict("size", "size"), "two attributes"),
        (lambda: verify.conflict("size", "shape").shift("colour", 0, jnp.ones(1), jnp.ones(1)), "attribute must be"),
        (lambda: verify.draw(verify.regimes("uniform")["train"], 0, key=jr.key(0)), "n must be positive"),
    ],
)
def test_refuses(act, says):
    with pytest.raises(InputError, match=says):
        act()


def test_velocity_error_refuses(collision):
    with pytest.raises(InputError, match="same shape"):
        verify.velocity_error(collision[:3], collision)
    with pytest.raises(InputError, match="velocities"):
        verify.velocity_error(collision, with_x(collision, collision.states["x"]))
    with pytest.raises(InputError, match=r"within 1 \.\. 31"):
        verify.velocity_error(collision, collision, given=32)
