"""Statistics of generators against Gaussian data and two points, where they are known."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.path import VE, VP, Bridge
from kinema.generate.sampling import sample
from kinema.generate.solver import dpm_solver_v3, grids
from kinema.generate.statistics import _smooth, estimate_statistics

MEAN, VARIANCES = np.array([1.0, -2.0]), np.array([0.04, 0.0])  # the second coordinate is a constant pixel
OPTIONS = {"low": -2.5, "high": 2.5, "n": 100, "k": 8}  # the same for all, so that all share what is compiled


@pytest.fixture(scope="module")
def gaussian():
    return {path: MixturePosterior(path, MEAN[None], VARIANCES[None]) for path in (VE(0.01, 80.0), VP())}


def data_of(gen, n, key):
    return jax.vmap(gen.draw)(jr.split(key, n))


def test_gaussian_data_on_every_path(gaussian, key):
    """l = kappa^2 / (c + kappa^2), f = -l mean has no variance: s = 0, b = -l' mean. Of the path only lam matters."""
    found = [estimate_statistics(gen, data_of(gen, 16, key), key=key, **OPTIONS) for gen in gaussian.values()]
    for one in found:
        linear = 1 / (1 + VARIANCES * np.exp(2 * one.lam)[:, None])
        np.testing.assert_allclose(one.linear, linear, atol=1e-4)
        assert not one.scaling.any()
        inside = slice(1, -1)
        np.testing.assert_allclose(one.bias[inside], (2 * linear * (1 - linear) * MEAN)[inside], atol=3e-3)


def test_two_points_of_data(key):
    """m = tanh(X e^(2 lam)): l, s and b as a regression over many draws, its derivatives by hand."""
    gen, k = MixturePosterior(VE(0.01, 80.0), np.array([[-1.0], [1.0]])), 4096
    data = jnp.array([[-1.0], [1.0]])
    found = estimate_statistics(gen, data, key=key, n=40, k=k, diagonal="exact", low=-1.0, high=1.0)
    i, draws = 18, np.random.default_rng(0)
    sign, z = draws.choice([-1.0, 1.0], 400_000), draws.normal(size=400_000)
    levels = found.lam[i - 1 : i + 2]
    linear = [1 - np.mean(slope(sign + np.exp(-lam) * z, lam)) for lam in levels]
    rate, lam = (linear[2] - linear[0]) / (levels[2] - levels[0]), levels[1]
    x = sign + np.exp(-lam) * z
    m = np.tanh(x * np.exp(2 * lam))
    f = (1 - linear[1]) * x - m
    f_rate = (1 - linear[1]) * (m - x) - rate * x - slope(x, lam) * (2 * x + m - x)
    scaling = np.cov(f, f_rate)[0, 1] / f.var()
    np.testing.assert_allclose(found.linear[i], linear[1], atol=4 * slope(x, lam).std() / k**0.5)
    np.testing.assert_allclose(
        found.scaling[i], scaling, atol=4 * (f_rate - scaling * f).std() / f.std() / k**0.5 + 0.1
    )
    np.testing.assert_allclose(found.bias[i], 0, atol=4 * (f_rate - scaling * f).std() / k**0.5)


def slope(x, lam):
    return np.exp(2 * lam) / np.cosh(x * np.exp(2 * lam)) ** 2


def test_pooled_statistics_conditions_and_batches(gaussian, key):
    """One number for all coordinates is the mean of l, and least squares over all; batches change nothing."""
    gen = next(iter(gaussian.values()))
    data = data_of(gen, 16, key)
    full = estimate_statistics(gen, data, key=key, **OPTIONS)
    scalar = estimate_statistics(gen, data, shape="scalar", cond=np.arange(16), batch_size=4, key=key, **OPTIONS)
    assert full.shape == (2,) and scalar.shape == ()
    np.testing.assert_allclose(scalar.linear, full.linear.mean(1), atol=1e-5)
    assert np.isfinite(full.bias).all() and np.isfinite(scalar.scaling).all()


def test_a_plan_with_statistics_runs_in_the_loop(gaussian, key):
    """Per-pixel coefficients, constant pixels included: five steps end where the Gaussian flow does."""
    gen, path = next((gen, path) for path, gen in gaussian.items() if isinstance(path, VE))
    statistics = estimate_statistics(gen, data_of(gen, 16, key), key=key, **OPTIONS)
    grid = grids.log_snr(path, 5, low=-2.5, high=2.5, clean=False)
    start = 10 * jr.normal(key, (4, 2))
    x = sample(gen, dpm_solver_v3(path, grid, statistics=statistics), 4, key=key, shape=(2,), start=start).x
    spread = np.sqrt(VARIANCES + grid.s[:, None] ** 2)
    np.testing.assert_allclose(x, MEAN + (start - MEAN) * spread[-1] / spread[0], atol=5e-3)


def test_smoothing_keeps_constants_and_damps_noise():
    noise = np.random.default_rng(0).normal(size=(200, 2))
    np.testing.assert_allclose(_smooth(np.ones((50, 2)), 3.0), 1.0)
    assert _smooth(noise, 3.0).std() < 0.5 * noise.std() and _smooth(noise, 0.0) is noise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": np.zeros(3)}, r"data must be finite rows .* got shape \(3,\)"),
        ({"data": np.full((3, 2), np.nan)}, "data must be finite"),
        ({"cond": np.arange(2)}, "cond must have a row for each of data, 3, got 2"),
        ({"n": 1}, "n must be"),
        ({"k": 1}, "k must be"),
        ({"shape": "pixel"}, "one of full, channel, scalar, got 'pixel'"),
        ({"diagonal": "trace"}, "'hutchinson' or 'exact'"),
        ({"smooth": -1.0}, "smooth must not be negative"),
        ({"low": 2.0, "high": 1.0}, "low must be below high"),
        ({"high": 9.0}, "leaves the path"),
    ],
)
def test_bad_input_is_refused(gaussian, key, options, message):
    arguments = {"data": np.zeros((3, 2))} | options
    with pytest.raises(InputError, match=message):
        estimate_statistics(next(iter(gaussian.values())), **arguments, key=key)


def test_a_path_with_an_origin_is_refused(key):
    with pytest.raises(InputError, match="Bridge has an origin as well"):
        estimate_statistics(MixturePosterior(Bridge(), MEAN[None], 1.0), np.zeros((3, 2)), key=key)
