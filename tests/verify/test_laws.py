"""Law errors: 0 for the truth, known values for damage that is known."""

import doctest
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import simulate, verify
from kinema.errors import BudgetExhausted, InputError, NotFinite
from kinema.motion import Invariant, SecondOrder, Trajectory


@pytest.fixture(scope="module")
def world():
    return simulate.collisions()


@pytest.fixture(scope="module")
def traj(world):
    return world.simulate(256, key=jr.key(3))


@pytest.fixture(scope="module")
def truth(world, traj):
    return verify.laws(traj, world)


def changed(traj, **states):
    return eqx.tree_at(lambda t: t.states, traj, traj.states | states)


def test_examples():
    names = {"jr": jr, "simulate": simulate}
    assert doctest.testmod(sys.modules["kinema.verify.laws"], extraglobs=names).failed == 0


def test_the_truth_obeys_every_law(traj, truth):
    assert set(truth.columns) == {f.name for f in truth.__dataclass_fields__.values()}
    for name in ("replay", "energy", "momentum", "kinematic", "wall", "ball"):
        worst = float(jnp.nanmax(truth.columns[name]))
        assert worst < 1e-5, name
    assert np.array_equal(truth.hits, traj.constants["hits"])
    assert np.array_equal(truth.pairs, traj.constants["pair_hits"] > 0)
    np.testing.assert_allclose(truth.speed, jnp.linalg.norm(traj.states["v"], axis=-1).mean((1, 2)), rtol=1e-6)


def test_the_truth_obeys_every_law_under_gravity(key):
    world = simulate.collisions(balls=3, radius=(0.05, 0.1, 0.12), mass=(1.0, 2.0, 3.0), gravity=2.0)
    errors = verify.laws(world.simulate(128, key=key), world)
    for name in ("replay", "energy", "momentum", "kinematic", "wall", "ball"):
        assert float(jnp.nanmax(errors.columns[name])) < 2e-5, name


def test_energy_of_one_frame_ten_percent_too_fast(traj, world):
    """E_5 = 1.21 E: rms of E_k / mean - 1."""
    errors = verify.laws(changed(traj, v=traj.states["v"].at[:, 5].mul(1.1)), world)
    mean = (15 + 1.21) / 16
    rms = np.sqrt((15 * (1 / mean - 1) ** 2 + (1.21 / mean - 1) ** 2) / 16)
    np.testing.assert_allclose(errors.energy, rms, rtol=1e-4)
    assert float(errors.momentum.min()) >= 0 and float(jnp.nanmean(errors.momentum)) > 1e-3


def test_momentum_of_one_frame_ten_percent_too_fast(key):
    """Two of 31 intervals, one of 2 axes, change by 0.1 P; radii differ by trajectory and are the trajectory's own."""
    world, n = simulate.head_on(), 32
    traj = verify.draw(verify.regimes("collision")["train"], n, key=key)
    assert float(verify.laws(traj, world).replay.max()) < 1e-5
    v, mass = np.asarray(traj.states["v"]), np.asarray(traj.constants["mass"])
    errors = verify.laws(changed(traj, v=traj.states["v"].at[:, 5].mul(1.1)), world)
    kinetic = (mass * (v[:, 0] ** 2).sum(-1)).sum(-1) / 2 * (31 + 1.21) / 32
    scale = mass.sum(-1) * np.sqrt(2 * kinetic / mass.sum(-1))
    expected = 2 * 0.1 * np.abs((mass * v[:, 5, :, 0]).sum(-1)) / scale / (31 * 2)
    np.testing.assert_allclose(errors.momentum, expected, rtol=1e-3, atol=1e-6)
    blind = Trajectory(traj.ts, traj.states, traj.constants | {"radius": jnp.full((n, 2), 0.5)}, single=False)
    assert float(verify.laws(blind, world).replay.mean()) > 1e-2


def test_one_position_too_far_right(key):
    """A ball thrown in a picture without walls; frame 9 too far right by 0.2: two of 31 intervals."""
    world = simulate.parabola()
    traj = world.simulate(64, key=key)
    truth = verify.laws(traj, world)
    assert max(float(truth.columns[name].max()) for name in ("replay", "kinematic", "momentum", "energy")) < 1e-5
    errors = verify.laws(changed(traj, x=traj.states["x"].at[:, 9, 0, 0].add(0.2)), world)
    speed = jnp.sqrt((traj.states["v"][:, :, 0] ** 2).sum(-1).mean(-1))
    expected = 2 * 0.2 / (0.1 * speed) / 31
    np.testing.assert_allclose(errors.kinematic, expected, rtol=1e-3)
    np.testing.assert_allclose(errors.replay, expected, rtol=1e-3)
    assert float(errors.wall.max()) == float(errors.ball.max()) == 0
    alone = verify.laws(traj[2], world)
    np.testing.assert_allclose(alone.speed, truth.speed[2:3], rtol=1e-6)


def test_overlaps(traj, world):
    x = (
        traj.states["x"]
        .at[0, 3, 0, 0]
        .set(0.12 - 0.03)
        .at[1, 4, 1]
        .set(traj.states["x"][1, 4, 0] + jnp.array([0.18, 0]))
    )
    errors = verify.laws(changed(traj, x=x), world)
    np.testing.assert_allclose(errors.wall[0], 0.03 / 0.12, rtol=1e-4)
    np.testing.assert_allclose(errors.ball[1], (0.24 - 0.18) / 0.24, rtol=1e-4)


def test_still_balls_obey_every_law(traj, world):
    x = jnp.broadcast_to(traj.states["x"][:, :1], traj.states["x"].shape)
    errors = verify.laws(changed(traj, x=x, v=jnp.zeros_like(x)), world)
    assert float(errors.replay.max()) == float(errors.kinematic.max()) == 0
    assert float(errors.speed.max()) == float(errors.hits.max()) == float(errors.pairs.max()) == 0


def test_replay_error_has_a_gradient_that_repairs(traj, world):
    states = jax.tree.map(lambda x: x[0], traj.states)
    damaged = jax.tree.map(lambda x: x + 0.02 * jr.normal(jr.key(1), x.shape), states)
    value = jax.jit(jax.value_and_grad(lambda states: verify.replay_error(world, states, world.dt)))
    error, slope = value(damaged)
    size = sum((g**2).sum() for g in jax.tree.leaves(slope)) ** 0.5
    better = jax.tree.map(lambda x, g: x - 0.01 * g / size, damaged, slope)
    assert bool(jnp.isfinite(size)) and float(value(better)[0]) < float(error)
    # at the truth every root is one of zero
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(value(states)[1]))


class Oscillator(simulate.World):
    """x'' = -4 x."""

    frames: int = eqx.field(default=9, static=True)
    dt: float = eqx.field(default=0.25, static=True)
    origin: simulate.Origin = eqx.field(default=simulate.Origin("oscillator"), static=True)

    @property
    def units(self):
        return {"t": "s", "x": "m", "v": "m/s"}

    @property
    def invariants(self):
        return {"energy": Invariant(lambda s: 0.5 * s["v"] ** 2 + 2 * s["x"] ** 2)}

    @property
    def law(self):
        return SecondOrder(lambda t, x, args: -4.0 * x)


def test_a_world_without_hits():
    """Four closed-form motions x = a cos(2 t), which differ in size."""
    world, size = Oscillator(), jnp.array([[0.5], [1.0], [2.0], [3.0]])
    states = {"x": size * jnp.cos(2 * world.ts), "v": -2 * size * jnp.sin(2 * world.ts)}
    traj = Trajectory(world.ts, states, single=False)
    errors = verify.laws(traj, world)
    assert set(errors.columns) == {"replay", "energy", "speed", "hits", "pairs"}
    assert float(errors.replay.max()) < 1e-4 and float(errors.energy.max()) < 1e-4
    wrong = verify.laws(changed(traj, v=-traj.states["v"]), world)
    assert float(wrong.replay.min()) > 0.1 and float(wrong.energy.max()) < 1e-4


def test_means_leave_out_what_cannot_be_judged(truth):
    partly = eqx.tree_at(lambda e: e.momentum, truth, truth.momentum.at[0].set(jnp.nan))
    assert np.isfinite(partly.means()["momentum"]) and np.isfinite(partly.spreads()["momentum"])


def test_refuses(traj, world):
    with pytest.raises(InputError, match="velocities"):
        verify.laws(Trajectory(traj.ts, {"x": traj.states["x"]}, single=False), world)
    with pytest.raises(InputError, match="even steps"):
        verify.laws(Trajectory(traj.ts**2, traj.states, single=False), world)
    with pytest.raises(InputError, match="two or more times"):
        verify.laws(Trajectory(traj.ts[:1], jax.tree.map(lambda x: x[:, :1], traj.states), single=False), world)
    with pytest.raises(NotFinite, match="states/v"):
        verify.laws(changed(traj, v=traj.states["v"].at[3].set(jnp.nan)), world)
    with pytest.raises(BudgetExhausted, match="trajectory 2, frame"):
        verify.laws(changed(traj, v=traj.states["v"].at[2].mul(1e4)), world)
