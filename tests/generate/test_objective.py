"""Truth: posterior variances of normal data, textbook weights, and one loss for every parameterization."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate import EDM, VE, VP, Linear, SubVP
from kinema.generate.fields import Moments, convert
from kinema.generate.generator import AbstractGenerator
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.objective import TIMES, Denoising, capped, edm, flow_matching
from kinema.generate.objective.weighting import draw_times

PATHS = [VP(), SubVP(), VE(), EDM(), Linear()]
ids = [type(path).__name__ for path in PATHS]
VARIANCE = 0.36


class Model(AbstractGenerator):
    """Any function (t, x, cond) as a generator."""

    path: object
    function: object
    predicts: str = "data"
    sigma_data: float = 1.0
    calls = property(lambda self: 1)

    def raw(self, t, x, cond=None, x0=None):
        return self.function(t, x, cond)


def constant(path, value):
    """Predicts the same data always: its loss is w(t) |value - x1|^2 / dim, whatever the noise."""
    return Model(path, lambda t, x, cond: jnp.full_like(x, value))


@pytest.mark.parametrize("path", PATHS, ids=ids)
@pytest.mark.parametrize("weight", ["data", "noise"])
def test_loss_of_the_exact_posterior_is_its_variance(path, weight, key):
    """E |E[x1 | x] - x1|^2 / dim = v s^2 / (a^2 v + s^2), averaged over the times."""
    key_data, key_loss = jr.split(key)
    n, oracle = 4096, MixturePosterior(path, np.array([[0.5, -1.0]]), VARIANCE)
    x1 = jax.vmap(oracle.draw)(jr.split(key_data, n))
    objective = Denoising(weight=weight)
    t = path.t_min + (path.t_max - path.t_min) * (np.arange(n) + 0.5) / n
    a, _, s = jax.vmap(path.coefficients)(jnp.asarray(t, jnp.float32))
    truth = VARIANCE * s**2 / (a**2 * VARIANCE + s**2) * (1.0 if weight == "data" else (a / s) ** 2)
    loss, _ = objective(oracle, x1, key_loss)
    # each term is truth(t) chi^2_2 / 2, of standard deviation truth(t)
    assert_within_error(loss, truth.mean(), standard_error=float(jnp.sqrt((truth**2).mean() / n)))


def test_gradient_vanishes_at_the_exact_posterior(key):
    """Scale and offset of the prediction; and it points back from elsewhere."""
    oracle, n = MixturePosterior(VP(), np.array([[0.5, -1.0], [-1.0, 1.0]]), VARIANCE), 1024

    def loss(scale, offset, key):
        x1 = jax.vmap(oracle.draw)(jr.split(jr.fold_in(key, 1), n))
        model = Model(oracle.path, lambda t, x, cond: scale * oracle.raw(t, x) + offset)
        return Denoising(weight="noise", times=lambda path, q: 0.2 + 0.6 * q)(model, x1, key)[0]

    slopes = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, None, 0)))
    for slope in slopes(1.0, 0.0, jr.split(key, 64)):
        assert_within_error(slope.mean(), 0.0, standard_error=slope.std() / 8)
    scale, offset = slopes(1.3, 0.5, jr.split(key, 4))
    assert float(scale.min()) > 0.01
    assert float(offset.min()) > 0.01


def beta(u):
    return 0.1 + 19.9 * u


def loss_of(weight, path, t, sigma_data=1.0):
    model = eqx.tree_at(lambda m: m.sigma_data, constant(path, 0.5), sigma_data)
    return Denoising(weight=weight).one(model, jr.key(3), jnp.asarray(t), {"x1": jnp.array([1.5, 0.5])}) / 0.5


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_weights_equal_their_textbook_forms(t, x64):
    """As factors of |m - x1|^2, from the papers' own formulas in their own time u = 1 - t."""
    u = 1 - t
    B = 0.1 * u + 19.9 * u**2 / 2
    snr = np.exp(-B) / (1 - np.exp(-B))
    np.testing.assert_allclose(loss_of("data", VP(), t), 1, rtol=1e-9)
    np.testing.assert_allclose(loss_of("noise", VP(), t), snr, rtol=1e-9)  # |e - z|^2, Ho et al. 2020
    np.testing.assert_allclose(loss_of("min-snr", VP(), t), min(snr, 5), rtol=1e-9)  # Hang et al. 2023
    score = np.exp(-B) / (1 - np.exp(-B)) ** 2  # |score gap|^2 = (a / s^2)^2 |m - x1|^2
    np.testing.assert_allclose(loss_of("likelihood", VP(), t), beta(u) * score, rtol=1e-9)  # g^2, Song et al. 2021
    sigma = 0.01 * 5000**u
    rate = 2 * np.log(5000) * sigma**2
    np.testing.assert_allclose(loss_of("likelihood", VE(), t), rate / sigma**4, rtol=1e-9)
    np.testing.assert_allclose(loss_of("velocity", Linear(), t), 1 / (1 - t) ** 2, rtol=1e-9)  # v = x1 - z
    sigma = (80 ** (1 / 7) + t * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    lam = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2  # Karras et al. 2022, table 1
    np.testing.assert_allclose(loss_of("residual", EDM(), t, 0.5), lam, rtol=1e-9)
    np.testing.assert_allclose(loss_of(capped("noise", 0.3), VP(), t), min(snr, 0.3), rtol=1e-9)
    np.testing.assert_allclose(loss_of(lambda moments, sd: moments.a, Linear(), t), t, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=ids)
def test_one_loss_for_every_parameterization(path, key, x64):
    """The same function, told as data, noise, velocity, score or residual."""

    def m(t, x, cond):
        return jnp.tanh(x + t)

    def told_as(predicts):
        def function(t, x, cond):
            affine = convert(predicts, "data", Moments.at(path, t), 0.7)
            return (m(t, x, cond) - affine.P * x) / affine.Q

        return Model(path, function, predicts, 0.7)

    x1 = jr.normal(key, (8, 3))
    objective = Denoising(weight="velocity", times=lambda path, q: 0.05 + 0.9 * q)
    losses = [objective(told_as(name), x1, key)[0] for name in ("data", "noise", "velocity", "score", "residual")]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-8)


def test_presets(key):
    model, x1 = constant(Linear(), 0.0), jnp.ones((64, 2))
    t = draw_times(TIMES["uniform"], Linear(), jr.split(key)[0], 64)
    np.testing.assert_allclose(flow_matching()(model, x1, key)[0], jnp.mean(1 / (1 - t) ** 2), rtol=1e-4)
    assert (edm().weight, edm().times) == ("residual", "log-normal-noise")
    assert edm(times="uniform").times == "uniform"


def test_times_are_stratified_and_of_their_law(key):
    n = 50
    for seed in range(3):
        t = draw_times(TIMES["uniform"], Linear(), jr.key(seed), n)
        np.testing.assert_array_equal(np.floor(np.asarray(t) * n), np.arange(n))
    pairs = np.asarray(draw_times(lambda path, q: q, Linear(), key, 7, "antithetic"))
    np.testing.assert_allclose(pairs[:3] + pairs[4:], 1, rtol=1e-6)
    free = np.asarray(draw_times(lambda path, q: q, Linear(), key, n, "independent"))
    assert len(set(np.floor(free * n))) < n and 0 < free.min() < free.max() < 1
    # Quantiles: logit(t) and log(s / a) are normal, with the mean and spread of the papers.
    quantiles = jnp.array([0.1, 0.5, 0.9])
    z = np.array([-1.2815516, 0, 1.2815516])
    t = TIMES["logit-normal"](Linear(), quantiles)
    np.testing.assert_allclose(jnp.log(t / (1 - t)), z, atol=1e-5)
    for path in (EDM(), VP()):
        t = TIMES["log-normal-noise"](path, quantiles)
        np.testing.assert_allclose(-jax.vmap(path.log_snr)(t), -1.2 + 1.2 * z, atol=2e-3)


def test_a_share_of_labels_is_dropped(key):
    """The model returns its label, 3 or the null label 7: losses 9 and 49."""
    n = 1000
    model = Model(Linear(), lambda t, x, cond: jnp.full_like(x, cond))
    batch = {"x1": jnp.zeros((n, 2)), "cond": jnp.full(n, 3)}
    loss, _ = Denoising(weight="data", unconditional=0.2, null=7)(model, batch, key)
    assert_within_error((loss - 9) / 40, 0.2, standard_error=(0.2 * 0.8 / n) ** 0.5)


def test_augmentation_and_trees(key):
    batch = {"a": jnp.zeros((4, 2)), "b": jnp.zeros((4, 3, 1))}
    model = Model(Linear(), lambda t, x, cond: jax.tree.map(jnp.zeros_like, x))
    objective = Denoising(weight="data", augment=lambda key, x1: jax.tree.map(lambda leaf: leaf + 2.0, x1))
    np.testing.assert_allclose(objective(model, batch, key)[0], 4.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Denoising(weight="noises"), "did you mean 'noise'"),
        (lambda: Denoising(times="uniformly"), "did you mean 'uniform'"),
        (lambda: Denoising(quantiles="antithetical"), "did you mean 'antithetic'"),
        (lambda: Denoising(unconditional=1.0, null=3), r"\[0, 1\)"),
        (lambda: Denoising(unconditional=0.1), "null"),
        (lambda: capped("noise", 0.0), "positive"),
        (lambda: Denoising(unconditional=0.1, null=3)(constant(Linear(), 0), jnp.zeros((2, 2)), jr.key(0)), "labels"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()
