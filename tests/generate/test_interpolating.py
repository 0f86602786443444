"""Paths between two data sets: the objective, its couplings, and both kinds of dynamics."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from scipy.optimize import linear_sum_assignment

from kinema import learn, models
from kinema.errors import InputError
from kinema.generate import CoupledPosterior, Denoising, Generator, Interpolating, MixturePosterior, bind, sample
from kinema.generate.fields import Heads
from kinema.generate.generator import AbstractGenerator
from kinema.generate.objective.interpolating import COUPLINGS
from kinema.generate.path import Interpolant, Linear, Mirror
from kinema.generate.solver import ancestral, euler, euler_maruyama, grids, heun

STARTS = MixturePosterior(Linear(), [[-1.0], [1.5]], 0.1)
ENDS = MixturePosterior(Linear(), [[0.0], [2.0], [-2.0]], 0.05, [0.5, 0.3, 0.2])


class Scaled(AbstractGenerator):
    """Both outputs of a generator, each times a factor."""

    exact: CoupledPosterior
    factors: jax.Array
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def path(self):
        return self.exact.path

    @property
    def predicts(self):
        return self.exact.predicts

    @property
    def calls(self):
        return 1

    def raw(self, t, x, cond=None, x0=None):
        return Heads(*(factor * out for factor, out in zip(self.factors, self.exact.raw(t, x))))


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_exact_outputs_have_the_least_loss(antithetic, key):
    exact = CoupledPosterior(Interpolant("trig", "quadratic"), STARTS, ENDS)
    x0, x1 = jax.vmap(exact.draw)(jr.split(key, 20_000))
    objective = Interpolating(antithetic=antithetic)

    @jax.jit
    def loss(factors):
        return objective(Scaled(exact, factors), {"x0": x0, "x1": x1}, key)

    at = [loss(jnp.array(f)) for f in ([1.0, 1.0], [0.9, 1.0], [1.1, 1.0], [1.0, 0.9], [1.0, 1.1])]
    total = [float(value) for value, _ in at]
    assert total[0] == min(total)
    assert abs(total[1] - total[2]) < 0.4 * (total[1] + total[2] - 2 * total[0])
    assert abs(total[3] - total[4]) < 0.4 * (total[3] + total[4] - 2 * total[0])
    assert np.isclose(sum(float(part) for part in at[0][1].values()), total[0], rtol=1e-5)
    assert set(at[0][1]) == {"transport", "noise"}


def test_antithetic_noise_cancels_an_unbounded_rate(key):
    """The velocity of a square-root gamma: its target grows like 1 / sqrt(t), the mean over z and -z does not."""
    path = Interpolant("linear", "sqrt")
    gen = Generator(path, lambda x, signal, cond: jnp.zeros_like(x), predicts="velocity")

    def gradient(antithetic, seed):
        objective = Interpolating(antithetic=antithetic, times=lambda path, quantile: 1e-3 + 0 * quantile)
        batch = {"x0": jnp.ones((1, 1)), "x1": jnp.ones((1, 1))}

        def loss(c):
            return objective(eqx.tree_at(lambda g: g.net, gen, lambda x, signal, cond: c + 0 * x), batch, jr.key(seed))[
                0
            ]

        return jax.grad(loss)(0.0)

    plain, paired = (np.array([gradient(kind, seed) for seed in range(30)]) for kind in (False, True))
    assert plain.std() > 10 and paired.std() < 1e-3


def test_couplings():
    x0, x1 = jr.normal(jr.key(0), (40, 2)), jr.normal(jr.key(1), (40, 2))
    rows = COUPLINGS["optimal-transport"](jr.key(2), x0, x1)
    cost = np.square(np.asarray(x1)[:, None] - np.asarray(x0)[None]).sum(-1)
    best = cost[linear_sum_assignment(cost)].sum()
    assert np.isclose(cost[np.arange(40), rows].sum(), best, rtol=1e-4)
    assert sorted(rows.tolist()) == sorted(COUPLINGS["independent"](jr.key(2), x0, x1).tolist()) == list(range(40))
    assert COUPLINGS["paired"](jr.key(2), x0, x1).tolist() == list(range(40))


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_flow_and_noisy_dynamics_end_in_the_same_law(level, key):
    exact = CoupledPosterior(Interpolant("linear", "sqrt"), STARTS, ENDS)
    x0, truth = jax.vmap(exact.draw)(jr.split(key, 4000))
    grid = grids.uniform_time(exact.path, 200)
    plan = (
        euler_maruyama(exact.path, grid, noise_level=lambda t: level)
        if level
        else heun(exact.path, grid, extrapolates="velocity")
    )
    x = sample(exact, plan, 4000, key=key, shape=(1,), x0=x0).x
    mean, variance = float(ENDS.weights @ ENDS.means[:, 0]), float(truth.var())
    assert_within_error(x.mean(), mean, standard_error=np.sqrt(variance / 4000), times=5)
    near = jnp.abs(x - ENDS.means[:, 0]).argmin(-1)
    shares = np.bincount(near, minlength=3) / 4000
    assert_within_error(shares, ENDS.weights, standard_error=np.sqrt(0.25 / 4000), times=5)


class Straight(AbstractGenerator):
    """Every x0 goes to x0 + 2 along a straight line."""

    path: Interpolant = Interpolant("linear", "none")
    predicts: str = "velocity"
    sigma_data: float = 1.0

    @property
    def calls(self):
        return 1

    def raw(self, t, x, cond=None, x0=None):
        return jnp.full_like(x, 2.0)


def test_a_flow_without_any_noise_is_sampled(key):
    gen, x0 = Straight(), jnp.array([[0.5], [-1.0]])
    grid = grids.from_times(gen.path, np.linspace(0, 1, 4))
    x = sample(gen, heun(gen.path, grid, extrapolates="velocity"), 2, key=key, shape=(1,), x0=x0).x
    np.testing.assert_allclose(x, x0 + 2, atol=1e-5)
    with pytest.raises(InputError, match="cannot be held"):
        heun(gen.path, grid, extrapolates="noise")


def test_a_map_between_two_sets_is_learnt(key):
    """Two points to two points: a small network of two outputs, sampled by flow and with noise."""
    key_net, key_fit, key_data = jr.split(key, 3)
    path = Interpolant("linear", "sqrt", scale=0.5)
    x0 = 0.1 * jr.normal(key_data, (512, 2)) + jnp.array([0.0, -1.0])
    x1 = jnp.where(jnp.arange(512)[:, None] % 2 == 0, jnp.array([1.0, 0.5]), jnp.array([-1.0, 0.5]))
    net = models.make("mlp", shape=(2,), width=32, depth=2, outputs=2, key=key_net)
    gen = Generator(path, net, predicts=("transport", "noise"))
    fitted = learn.fit(
        gen,
        Interpolating(),
        {"x0": x0, "x1": x1},
        steps=400,
        batch_size=128,
        optimizer=learn.adam(1e-2, 400),
        key=key_fit,
        ema=0.99,
        progress=False,
    ).ema
    assert set(fitted(0.5, x0[0])._fields) == {"data", "noise", "velocity", "score"}
    plan = euler_maruyama(path, grids.uniform_time(path, 60), noise_level=lambda t: 0.3)
    x = sample(fitted, plan, 256, key=key, shape=(2,), x0=x0[:256]).x
    assert np.abs(np.asarray(x[:, 1]) - 0.5).mean() < 0.15
    assert np.abs(np.abs(np.asarray(x[:, 0])) - 1).mean() < 0.15
    assert 0.35 < (np.asarray(x[:, 0]) > 0).mean() < 0.65


def test_what_does_not_fit_is_refused(key):
    path = Interpolant()
    pair = CoupledPosterior(path, STARTS, ENDS)
    grid = grids.uniform_time(path, 8)
    inside = grids.from_times(path, np.linspace(0.01, 0.99, 8))
    with pytest.raises(InputError, match="takes the score for -noise / s and the origin for known"):
        bind(ancestral(path, inside), pair)
    with pytest.raises(InputError, match="does not know x0: extrapolate 'velocity'"):
        bind(euler(path, inside), pair)
    alone = Generator(path, lambda x, signal, cond: x, predicts="velocity")
    assert alone.fields == {"velocity"}
    with pytest.raises(InputError, match="needs a score; this generator has \\['velocity'\\]"):
        bind(euler_maruyama(path, grid, noise_level=lambda t: 0.1), alone)
    with pytest.raises(InputError, match="extrapolates 'data'; this generator has"):
        bind(euler(path, inside), alone)
    with pytest.raises(InputError, match="x0 is missing"):
        sample(pair, heun(path, grid, extrapolates="velocity"), 4, key=key, shape=(1,))
    with pytest.raises(InputError, match="log-SNR of the path falls"):
        euler_maruyama(Mirror(), grids.uniform_time(Mirror(), 8))
    with pytest.raises(InputError, match="train it with Interpolating"):
        Denoising()(alone, {"x1": jnp.zeros((2, 1)), "x0": jnp.zeros((2, 1))}, key)
    with pytest.raises(InputError, match="train it with Denoising"):
        Interpolating()(STARTS, {"x1": jnp.zeros((2, 1)), "x0": jnp.zeros((2, 1))}, key)
    with pytest.raises(InputError, match="same shapes"):
        Interpolating()(alone, {"x1": jnp.zeros((2, 1)), "x0": jnp.zeros((2, 3))}, key)
    with pytest.raises(InputError, match="dict with x0 and x1"):
        Interpolating()(alone, jnp.zeros((2, 1)), key)
    with pytest.raises(InputError, match="coupling"):
        Interpolating(coupling="optimal")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linaer"}, "schedule"),
        ({"gamma": "sqr"}, "gamma"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"schedule": lambda t, square: (t, 1 - 0.5 * t)}, "b\\(1\\) = 0, got 0.5"),
        ({"gamma": lambda t: t}, "gamma must vanish at t=0 and t=1"),
        ({"gamma": lambda t: t * (1 - t) * (t - 0.5)}, "gamma must not be negative, got"),
    ],
)
def test_bad_interpolants(options, message):
    with pytest.raises(InputError, match=message):
        Interpolant(**options)


def test_coupled_posterior_refuses():
    with pytest.raises(InputError, match="random endpoint"):
        CoupledPosterior(Linear(), STARTS, ENDS)
    with pytest.raises(InputError, match="must agree"):
        CoupledPosterior(Interpolant(), STARTS, MixturePosterior(Linear(), [[0.0, 1.0]]))
    full = MixturePosterior(Linear(), [[0.0]], np.ones((1, 1, 1)))
    with pytest.raises(InputError, match="diagonal"):
        CoupledPosterior(Interpolant(), STARTS, full)
