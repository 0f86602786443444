import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.path import GAUSSIAN

PATH_LIST = {name: make() for name, make in GAUSSIAN.items()}
MEANS, WEIGHTS = [[-1.0, 0.5], [1.2, -0.3], [0.0, 1.0]], [0.5, 0.3, 0.2]
FULL = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.2]], [[0.2, 0.0], [0.0, 0.1]]])


@pytest.mark.parametrize("name", PATH_LIST)
def test_density_and_velocity_satisfy_the_continuity_equation(name, x64):
    """d log p / dt + v . grad log p + div v = 0, and the score is grad log p."""
    gen = MixturePosterior(PATH_LIST[name], MEANS, FULL, WEIGHTS)

    def terms(t, x):
        prediction = gen(t, x)
        dt = jax.jvp(lambda now: gen.log_prob(now, x), (t,), (jnp.ones_like(t),))[1]
        score = jax.grad(gen.log_prob, argnums=1)(t, x)
        divergence = jnp.trace(jax.jacfwd(lambda y: gen(t, y).velocity)(x))
        residual = dt + prediction.velocity @ score + divergence
        size = jnp.abs(dt) + jnp.abs(prediction.velocity @ score) + jnp.abs(divergence)
        return residual / (1 + size), jnp.abs(prediction.score - score).max() / (1 + jnp.abs(score).max())

    t = jnp.linspace(0.05, 0.95, 7)
    s = jax.vmap(PATH_LIST[name].coefficients)(t)[2]
    x = jr.normal(jr.key(1), (7, 2)) * jnp.sqrt(1 + s**2)[:, None]
    residual, gap = jax.jit(jax.vmap(terms))(t, x)
    assert np.abs(residual).max() < 1e-10
    assert gap.max() < 1e-10


def test_posterior_mean_equals_quadrature(x64):
    gen = MixturePosterior(PATH_LIST["linear"], [[-1.0], [0.7]], [0.1, 0.4], [0.3, 0.7])
    t, x = 0.4, jnp.array([0.25])
    grid = np.linspace(-6, 6, 20_001)
    prior = 0.3 * np.exp(-((grid + 1) ** 2) / 0.2) / 0.1**0.5 + 0.7 * np.exp(-((grid - 0.7) ** 2) / 0.8) / 0.4**0.5
    joint = prior * np.exp(-((0.25 - t * grid) ** 2) / (2 * (1 - t) ** 2))
    assert abs(float(gen(t, x).data[0]) - (grid * joint).sum() / joint.sum()) < 1e-10


def test_covariances_of_every_shape_agree(x64):
    path, x = PATH_LIST["vp"], jnp.array([0.3, -0.2])
    forms = [0.2, np.full(3, 0.2), np.full((3, 1), 0.2), np.full((3, 2), 0.2), np.tile(0.2 * np.eye(2), (3, 1, 1))]
    data = [MixturePosterior(path, MEANS, form, WEIGHTS)(0.7, x).data for form in forms]
    assert all(np.allclose(one, data[0], atol=1e-12) for one in data)


def test_point_masses_are_weighted_by_distance(x64):
    gen = MixturePosterior(PATH_LIST["linear"], [[-1.0], [1.0]])
    assert np.allclose(gen(0.5, jnp.array([0.3])).data, np.tanh(0.3 * 0.5 / 0.25))


def test_draws_have_the_moments_of_the_mixture(key):
    n = 20_000
    x = jax.jit(jax.vmap(MixturePosterior(PATH_LIST["vp"], MEANS, FULL, WEIGHTS).draw))(jr.split(key, n))
    mean = np.array(WEIGHTS) @ np.array(MEANS)
    second = sum(w * (c + np.outer(m, m)) for w, c, m in zip(WEIGHTS, FULL, np.array(MEANS)))
    covariance = second - np.outer(mean, mean)
    assert_within_error(x.mean(0), mean, standard_error=np.sqrt(np.diag(covariance) / n))
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) * 3 / n)
    assert_within_error(np.cov(x.T), covariance, standard_error=spread)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"means": [1.0]}, "means must have shape"),
        ({"weights": [1.0]}, "weights must be 3 numbers"),
        ({"weights": [1.0, -1.0, 1.0]}, "none negative"),
        ({"covs": np.ones((2, 2))}, "covs must be one variance"),
        ({"covs": -1.0}, "positive semi-definite"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        MixturePosterior(PATH_LIST["vp"], **{"means": MEANS, "covs": 0.1, "weights": WEIGHTS} | options)
