"""Restoration and projection: the conditional mean of a Gaussian is found, and exact motion comes back exactly."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import simulate, verify
from kinema.errors import InputError
from kinema.generate import VP, Codec, Linear, MixturePosterior, solver
from kinema.generate.generator import AbstractGenerator
from kinema.motion import Trajectory
from kinema.steer import LawProjection, Observed, fit_motion, restore, steer
from kinema.steer.restoration import restoration_plan

WORLD = simulate.make("collisions")


class Series(AbstractGenerator):
    """An exact generator of vectors, seen as one series of frames with one channel."""

    inner: MixturePosterior
    predicts: str = "data"
    sigma_data: float = 1.0

    @property
    def path(self):
        return self.inner.path

    @property
    def calls(self):
        return 1

    def raw(self, t, x, cond=None, x0=None):
        return self.inner.raw(t, x[:, 0], cond, x0)[:, None]


@pytest.mark.parametrize("path", [Linear(), VP()])
def test_restoring_a_gaussian_gives_its_conditional_mean(path, key):
    frames, noise, n = 5, 0.7, 512
    gap = np.arange(frames)[:, None] - np.arange(frames)
    cov, mean = np.exp(-np.abs(gap) / 3.0), np.linspace(-0.5, 0.5, frames)
    gen = Series(MixturePosterior(path, jnp.asarray(mean)[None], jnp.asarray(cov)[None]))
    y = np.array([1.0, -0.5, 0.0, 0.8, 0.3])
    seen = np.array([True, True, False, True, False])
    held = cov[np.ix_(seen, seen)] + noise**2 * np.eye(seen.sum())
    truth = mean + cov[:, seen] @ np.linalg.solve(held, y[seen] - mean[seen])
    observed = Observed(
        {
            "x": jnp.tile(y, (n, 1)),
        },
        jnp.tile(seen, (n, 1)),
        {"x": noise},
    )
    codec = Codec(jnp.zeros(1), jnp.ones(1), ("x",))
    found = np.asarray(restore(gen, codec, observed, key=key, rounds=32).x["x"])
    error = found.std(0) / np.sqrt(n)
    assert (np.abs(found.mean(0) - truth) <= 4 * error + 2e-3).all(), (found.mean(0), truth)
    assert np.abs(truth - mean)[~seen].max() > 0.1


def test_an_exact_motion_is_found_from_a_poor_guess(key):
    key_motion, key_noise = jr.split(key)
    motion = WORLD.simulate(8, key=key_motion).states
    keys = iter(jr.split(key_noise, 2))
    guess = jax.tree.map(lambda leaf: leaf + 0.01 * jr.normal(next(keys), leaf.shape), motion)
    ones = jax.tree.map(jnp.ones_like, motion)
    found = jax.vmap(lambda g, m, w: fit_motion(WORLD, g, m, w, iterations=12))(guess, motion, ones)
    off = jnp.sqrt(jnp.mean((found["x"] - motion["x"]) ** 2, (1, 2, 3)))
    assert float(jnp.median(off)) < 1e-3


def noisy_motion(key, n=4):
    key_motion, key_noise = jr.split(key)
    motion = WORLD.simulate(n, key=key_motion)
    keys = iter(jr.split(key_noise, 2))
    states = jax.tree.map(lambda leaf: leaf + 0.2 * jr.normal(next(keys), leaf.shape), motion.states)
    return Trajectory(motion.ts, states, {}, motion.meta, single=False)


@pytest.mark.parametrize("anchor", ["middle", 0, 15])
def test_projection_obeys_every_law(anchor, key):
    wrong = noisy_motion(key)
    assert float(verify.laws(wrong, WORLD).replay.min()) > 0.1
    projected = jax.vmap(LawProjection(WORLD, anchor=anchor).project)(wrong.states)
    errors = verify.laws(Trajectory(wrong.ts, projected, {}, wrong.meta, single=False), WORLD)
    for name in ("replay", "energy", "momentum", "wall", "ball"):
        assert float(jnp.nanmax(getattr(errors, name))) <= 1e-5, name


def test_projection_of_true_motion_moves_nothing(key):
    true = WORLD.simulate(4, key=key).states
    projected = jax.vmap(LawProjection(WORLD).project)(true)
    np.testing.assert_allclose(projected["x"], true["x"], atol=1e-3)


def test_projection_while_sampling_ends_on_the_law(key):
    """A generator of one point mass at true motion, projected from the start: nothing may move."""
    true = jax.tree.map(lambda leaf: leaf[0], WORLD.simulate(1, key=key).states)
    codec = Codec(jnp.zeros(2), jnp.ones(2), ("v", "x"))
    flat = codec.encode(true)

    class Point(AbstractGenerator):
        predicts: str = "data"
        sigma_data: float = 1.0
        path: Linear = Linear()

        @property
        def calls(self):
            return 1

        def raw(self, t, x, cond=None, x0=None):
            return flat

    plan = solver.make("euler", Linear(), 4)
    result = steer(Point(), plan, LawProjection(WORLD, start=0.0), 2, key=key, shape=flat.shape, codec=codec)
    np.testing.assert_allclose(result.x["x"][1], true["x"], atol=2e-3)


def test_symmetries_are_motions_of_the_world(key):
    motion = WORLD.simulate(16, key=key)
    turned = jax.vmap(WORLD.augment)(jr.split(jr.key(1), 16), motion.states)
    assert float(jnp.abs(turned["x"] - motion.states["x"]).max()) > 0.1
    errors = verify.laws(Trajectory(motion.ts, turned, {}, motion.meta, single=False), WORLD)
    assert float(errors.replay.max()) <= 1e-5
    assert simulate.make("collisions", gravity=1.0).augment is None


def test_bad_input(key):
    states, seen = {"x": jnp.zeros((2, 16, 2, 2))}, jnp.ones((2, 16), bool)
    with pytest.raises(InputError, match="noise of x must be positive, got 0"):
        Observed(states, seen, {"x": 0.0})
    with pytest.raises(InputError, match="noise must name"):
        Observed(states, seen, {"y": 1.0})
    with pytest.raises(InputError, match="motion 1 is not seen in any frame"):
        Observed(states, seen.at[1].set(False), {"x": 1.0})
    with pytest.raises(InputError, match=r"seen must have shape \(2, 16\)"):
        Observed(states, seen[:, :3], {"x": 1.0})
    with pytest.raises(InputError, match="rounds must be at least 2"):
        restoration_plan(Linear(), 1.0, 1)
    with pytest.raises(InputError, match="noise must be between"):
        restoration_plan(Linear(), 1e9, 8)
    with pytest.raises(InputError, match=r"anchor must be 'middle' or a frame in 0 \.\. 15, got 16"):
        LawProjection(WORLD, anchor=16)
    with pytest.raises(InputError, match="start must be in"):
        LawProjection(WORLD, start=1.5)
