"""Truth: densities of normal laws and their mixtures, pushed along the flow in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate import VE, VP, Generator, Linear, SubVP
from kinema.generate.likelihood import bits_per_dim, dequantise, log_prob
from kinema.generate.mixtures import MixturePosterior

TIGHT = {"rtol": 1e-7, "atol": 1e-7}


@eqx.filter_jit
def densities(oracle, x, **options):
    return jax.vmap(lambda one: log_prob(oracle, one, **options))(x)


@pytest.mark.parametrize("path", [VP(), SubVP(), VE()], ids=["vp", "sub-vp", "ve"])
def test_normal_data_and_mixtures(path, x64, key):
    def oracle(means, std, weights):
        return MixturePosterior(path, np.array(means), np.array(std) ** 2, np.array(weights))

    # A mixture whose mean is 0: then the source differs from its normal law by the second order of a(0) or 1 / s(0).
    mixture = oracle([[1.0, -0.5], [-1.2, 0.7], [0.2, -0.2]], [0.2, 0.3, 0.1], [0.4, 0.3, 0.3])
    mixture = eqx.tree_at(lambda m: m.means, mixture, mixture.means - mixture.weights @ mixture.means)
    x = jax.vmap(mixture.draw)(jr.split(key, 8))
    truth = jax.vmap(lambda one: mixture.log_prob(path.t_max, one))(x)
    np.testing.assert_allclose(densities(mixture, x, **TIGHT), truth, atol=1e-3)

    # One normal law off the origin: the density that the model itself has, its source carried by the affine flow.
    mean, std = jnp.array([1.0, -2.0]), 0.6
    (a, _, s), (end_a, _, end_s) = path.coefficients(path.t_min), path.coefficients(path.t_max)
    stretch = jnp.sqrt(((a * std) ** 2 + s**2) / ((end_a * std) ** 2 + end_s**2))
    source = a * mean + stretch * (x - end_a * mean)
    truth = jax.scipy.stats.norm.logpdf(source, scale=s).sum(-1) + 2 * jnp.log(stretch)
    one = oracle([mean, [0, 0], [0, 0]], [std, 1, 1], [1, 0, 0])
    np.testing.assert_allclose(densities(one, x, **TIGHT), truth, atol=1e-4)


def test_single_precision_and_hutchinson(key):
    """Against the truth; and the estimate against the exact divergence."""
    cov = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 0.5]])
    oracle, n = MixturePosterior(SubVP(), np.zeros((1, 3)), cov[None]), 400
    x = jnp.array([0.5, -0.5, 1.0])
    truth = oracle.log_prob(oracle.path.t_max, x)
    np.testing.assert_allclose(densities(oracle, x[None])[0], truth, atol=2e-3)

    def draws(oracle):
        return jax.vmap(lambda k: log_prob(oracle, x, key=k, divergence="hutchinson"))(jr.split(key, n))

    draws = jax.jit(draws)
    found = draws(oracle)
    assert float(found.std()) > 0.01
    assert_within_error(found.mean(), truth, standard_error=found.std() / n**0.5)
    # Where coordinates do not mix, every direction gives the exact divergence.
    apart = MixturePosterior(SubVP(), np.zeros((1, 3)), np.diag([0.5, 1.0, 1.5])[None])
    np.testing.assert_allclose(draws(apart), apart.log_prob(apart.path.t_max, x), atol=2e-3)


class Apart(eqx.Module):
    """A network on any tree that treats its numbers apart."""

    def __call__(self, x, signal, cond=None):
        return jax.tree.map(lambda leaf: jnp.tanh(2 * leaf) + signal / 20, x)


def test_density_integrates_to_one_and_trees_multiply():
    gen = Generator(Linear(), Apart(), predicts="velocity")
    x = jnp.linspace(-8, 8, 801)
    alone = densities(gen, x[:, None])
    np.testing.assert_allclose(jnp.trapezoid(jnp.exp(alone), x), 1, atol=2e-3)
    tree = {"a": x[jnp.array([390, 420])], "b": x[405].reshape(1, 1)}
    np.testing.assert_allclose(log_prob(gen, tree), alone[390] + alone[405] + alone[420], atol=5e-4)


def test_bits_of_the_uniform_law():
    dim, levels = 12, 16
    logp = jnp.full(3, -dim * np.log(2.0))  # uniform over [-1, 1]
    np.testing.assert_allclose(bits_per_dim(logp, levels, dim), np.log2(levels), rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(jnp.zeros(()), 256, dim), 7)
    np.testing.assert_allclose(bits_per_dim(jnp.zeros(()), 256, dim, width=1.0), 8)


def test_dequantised_values_are_found_again(key):
    values = np.arange(17, dtype=np.uint8).repeat(50)
    x = dequantise(values, 17, key=key)
    np.testing.assert_array_equal(np.floor((np.asarray(x) + 1) / 2 * 17), values)
    assert float(x.min()) >= -1
    assert float(x.max()) < 1
    assert_within_error(x.mean(), 0.0, standard_error=2 / 17 / np.sqrt(12 * len(values)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": jnp.array([1, 2])}, "dequantise"),
        ({"divergence": "trace"}, "divergence"),
        ({"divergence": "hutchinson"}, "needs key"),
        ({"probes": 0}, "probes"),
        ({"span": (0.1, 0.9)}, "from data to source"),
    ],
)
def test_refuses(options, message):
    oracle = MixturePosterior(VP(), jnp.zeros((1, 2)), 1.0)
    with pytest.raises(InputError, match=message):
        log_prob(oracle, options.pop("x", jnp.zeros(2)), **options)


def test_refuses_numbers_that_are_not_densities():
    with pytest.raises(InputError, match="dequantise"):
        bits_per_dim(np.array([3, 4]), 256, 2)
    with pytest.raises(InputError, match="levels"):
        bits_per_dim(jnp.zeros(2), 0, 2)
    with pytest.raises(InputError, match=r"0 \.\. 15"):
        dequantise(np.array([16]), 16, key=jr.key(0))
    with pytest.raises(InputError, match="whole numbers"):
        dequantise(np.array([0.5]), 16, key=jr.key(0))
