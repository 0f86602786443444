"""Dimensions of normal laws and spheres, by models and by distances; peers where they are installed."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate import VE, VP, MixturePosterior
from kinema.verify import Gauged, data_dimension, flow_jacobian, intrinsic_dimension

PATH = VE(sigma_min=0.003, sigma_max=3.0)
VARIANCES = np.array([0.5, 0.0, 0.2, 0.0])
LINE = MixturePosterior(PATH, [[0.3, 0.0, -0.2, 0.0]], [VARIANCES])


def test_singular_values_of_a_normal_law(x64):
    """sqrt((c + low^2) / (c + high^2)) in each direction; on a path that scales its data the same in units of data."""
    for path in (PATH, VP()):
        gen = MixturePosterior(path, [[0.3, 0.0, -0.2, 0.0]], [VARIANCES])
        found = flow_jacobian(gen, jnp.array([1.0, -2.0, 0.5, 2.0]), noise=(3.0, 0.01), steps=400, levels=2)
        for values, low in zip(found.singular_values, found.noise):
            truth = np.sort(np.sqrt((VARIANCES + float(low) ** 2) / (VARIANCES + 9.0)))[::-1]
            np.testing.assert_allclose(values, truth, rtol=1e-6)


def turned(gen, size):
    """With a gauge K s added, K of rotations between the plane of the data and the rest."""
    turn = jnp.array([[0, 0, 0, 1], [0, 0, 1, 0], [0, -1, 0, 0], [-1, 0, 0, 0]], float)
    return Gauged(gen, lambda t, x: size * turn @ gen(t, x).score)


@pytest.mark.parametrize("method", ["likelihood", "flow", "flipd", "normal"])
def test_every_method_finds_two_of_four(method, key):
    x = jnp.array([[0.3, 0.0, -0.2, 0.0], [0.9, 0.0, 0.1, 0.0]])
    report = intrinsic_dimension(LINE, x, method=method, noise=0.02, steps=120, key=key)
    np.testing.assert_allclose(report.dimension, 2, atol=0.05)
    assert report.trusted and report.asymmetry < 1e-8


def test_a_gauge_spoils_one_evaluation_and_not_the_likelihood(key):
    """FLIPD is off by sigma^2 (r . s + |r|^2) = sigma^2 |K s|^2 at least; the likelihood is not, and trust is told."""
    exact = eqx.tree_at(lambda gen: gen.path, LINE, VE(sigma_min=0.003, sigma_max=20.0))
    gen, x = turned(exact, 3.0), jnp.array([[0.9, 0.0, 0.4, 0.0]])
    likelihood = intrinsic_dimension(gen, x, noise=0.1, most=20.0, steps=200, key=key)
    flipd = intrinsic_dimension(gen, x, method="flipd", noise=0.1, key=key)
    score = -(x[0] - jnp.array([0.3, 0.0, -0.2, 0.0])) / (VARIANCES + 0.01)
    # div(s + r) + |s + r|^2 with div r = -r . s and r . s = 0 for a constant turn
    truth = 4 + 0.01 * (-np.sum(1 / (VARIANCES + 0.01)) + jnp.sum(score**2) + 9 * jnp.sum(score**2))
    assert abs(truth - 2) > 0.3
    np.testing.assert_allclose(flipd.dimension, truth, rtol=1e-3)
    # log p at the two levels that are compared
    gap = score * (VARIANCES + 0.01)
    spreads = [VARIANCES + v for v in (0.01, 0.01 / 1.5**2)]
    logs = [-0.5 * np.sum(np.log(spread) + gap**2 / spread) for spread in spreads]
    np.testing.assert_allclose(likelihood.dimension, 4 + (logs[0] - logs[1]) / np.log(1.5), atol=1e-2)
    assert likelihood.trusted and not flipd.trusted and flipd.asymmetry > 0.05


def sphere(n, dim, space, seed=0):
    """Uniform on S^dim in `space` dimensions."""
    x = np.random.default_rng(seed).standard_normal((n, dim + 1))
    return np.pad(x / np.linalg.norm(x, axis=1, keepdims=True), ((0, 0), (0, space - dim - 1))).astype(np.float32)


@pytest.mark.parametrize("dim, space", [(2, 5), (5, 20)])
@pytest.mark.parametrize("method", ["two-nn", "mle", "local-pca"])
def test_spheres_by_distances(method, dim, space):
    found = data_dimension(jnp.asarray(sphere(1000, dim, space)), method=method)
    assert abs(found.dimension - dim) < 0.07 * dim
    assert found.local.shape == (1000,)


def test_bad_input(key):
    x = jnp.zeros((2, 4))
    with pytest.raises(InputError, match="unknown method 'flips'; did you mean 'flipd'"):
        intrinsic_dimension(LINE, x, method="flips", key=key)
    with pytest.raises(InputError, match="below most"):
        intrinsic_dimension(LINE, x, noise=4.0, key=key)
    with pytest.raises(InputError, match="noise ratios of the path"):
        intrinsic_dimension(LINE, x, noise=0.0035, key=key)  # the likelihood looks below it too
    with pytest.raises(InputError, match="takes 65 derivatives"):
        intrinsic_dimension(MixturePosterior(PATH, np.zeros((1, 65)), 1.0), jnp.zeros((1, 65)), key=key)
    with pytest.raises(InputError, match="levels must divide steps"):
        flow_jacobian(LINE, x[0], steps=10, levels=3)
    with pytest.raises(InputError, match="neighbours must be at least 3"):
        data_dimension(x)
    with pytest.raises(InputError, match="equal rows"):
        data_dimension(jnp.zeros((30, 4)))
    with pytest.raises(InputError, match="not finite"):
        data_dimension(jnp.full((30, 4), jnp.nan))
