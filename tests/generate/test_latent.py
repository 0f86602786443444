"""Latent models against integrals, principal components and bounds that are known; noise against its formula."""

import logging
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate import InstanceNoise, LatentModel, fit_latent_likelihood, recommended_noise, select_noise
from kinema.generate.codec import Codec
from kinema.generate.latent import Normal, Uniform, diagnose
from kinema.generate.objective.latent_likelihood import LatentLikelihood
from kinema.verify import energy_distance


class Affine(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, z):
        return self.weight @ z + self.bias


WEIGHT, BIAS = jnp.array([[1.2], [-0.4], [0.5]]), jnp.array([0.3, 0.1, -0.2])


def affine(latent, std, std_min=1e-4, **options):
    generator = Affine(jnp.asarray(WEIGHT, jnp.result_type(float)), jnp.asarray(BIAS, jnp.result_type(float)))
    return LatentModel(
        generator, latent, jnp.log(jnp.asarray(std, jnp.result_type(float)) - std_min), std_min, **options
    )


@eqx.filter_jit
def log_prob(model, x, quadrature=None):
    return model.log_prob(x, quadrature=quadrature)


def test_quadrature_of_a_segment_is_the_error_function(x64):
    """int_0^1 N(x | a z + b, s^2 I) dz, by the projection of x on the segment."""
    std, x = 0.15, jnp.array([1.4, -0.4, 0.4])
    a, gap = jnp.asarray(WEIGHT[:, 0], float), x - jnp.asarray(BIAS, float)
    along, length = gap @ a / (a @ a), jnp.linalg.norm(a)
    away = gap @ gap - along**2 * (a @ a)
    cdf = jax.scipy.stats.norm.cdf
    mass = (cdf((1 - along) * length / std) - cdf(-along * length / std)) / length
    truth = jnp.log(mass) - away / (2 * std**2) - jnp.log(2 * jnp.pi * std**2)
    model = affine(Uniform(1), std)
    errors = [abs(float(log_prob(model, x, m) - truth)) for m in (64, 256, 4096)]
    assert errors[2] < 1e-6
    assert errors[1] < errors[0] / 8  # order two: a sixteenth


@pytest.mark.parametrize("dim", [1, 2])
def test_quadrature_of_a_normal_latent_is_the_normal_law(dim, x64):
    weight = jnp.array([[1.2, 0.3], [-0.4, 0.9], [0.5, 0.2]])[:, :dim]
    model = LatentModel(Affine(weight, BIAS), Normal(dim), jnp.log(jnp.array(0.5)))
    cov = weight @ weight.T + model.std**2 * jnp.eye(3)
    for x in (jnp.array([0.9, -0.1, 0.1]), jnp.array([-2.0, 1.0, -1.0])):
        truth = jax.scipy.stats.multivariate_normal.logpdf(x, BIAS, cov)
        np.testing.assert_allclose(log_prob(model, x), truth, atol=1e-6)


def test_singular_data_have_no_best_likelihood(x64):
    """On the line itself log p rises as -(D - d) log s without end."""
    x = affine(Normal(1), 0.1).generator(jnp.array([0.7]))
    low, high = (log_prob(affine(Normal(1), s, 0.0), x, 20_000) for s in (0.01, 0.005))
    np.testing.assert_allclose((high - low) / np.log(2), 3 - 1, atol=1e-3)


def test_codec_changes_units_of_density_and_samples(key, x64):
    codec = Codec(jnp.array([1.0, 2.0, 3.0]), jnp.full(3, 4.0))
    plain, model = affine(Normal(1), 0.3), affine(Normal(1), 0.3, codec=codec)
    x = jnp.array([0.2, 0.3, -0.4])
    np.testing.assert_allclose(log_prob(model, 4 * x + codec.mean), log_prob(plain, x) - 3 * np.log(4), rtol=1e-6)
    np.testing.assert_allclose(model.sample(key=key), 4 * plain.sample(key=key) + codec.mean, rtol=1e-6)


def test_samples_carry_no_noise_unless_asked(key):
    n, model = 20_000, affine(Normal(1), 0.3)
    keys = jr.split(key, n)
    normal = jnp.cross(WEIGHT[:, 0], jnp.array([1.0, 0.0, 0.0]))
    normal = normal / jnp.linalg.norm(normal)
    bare, noisy = (jax.vmap(lambda k, d=d: model.sample(key=k, density=d))(keys) for d in (False, True))
    assert jnp.abs((bare - BIAS) @ normal).max() < 1e-5
    found = jnp.mean(((noisy - BIAS) @ normal) ** 2)
    assert_within_error(found, 0.09, standard_error=0.09 * (2 / n) ** 0.5)
    z = jax.vmap(lambda k: Uniform(1).sample(key=k))(keys)
    assert_within_error(z.mean(), 0.5, standard_error=(1 / 12 / n) ** 0.5)
    assert_within_error(z.var(), 1 / 12, standard_error=(1 / 180 / n) ** 0.5)


class Posterior(eqx.Module):
    """Exact posterior of the linear model, made wider by `wide`."""

    mean: jax.Array  # (d, D)
    log_std: jax.Array

    def __call__(self, x):
        return self.mean @ (x - BIAS), self.log_std


@eqx.filter_jit
def bounds(model, x, keys, samples):
    return jax.vmap(lambda key: model.log_prob_bound(x, key=key, samples=samples))(keys)


def exact_encoder(std):
    precision = float(WEIGHT[:, 0] @ WEIGHT[:, 0]) / std**2 + 1
    return Posterior(WEIGHT.T / (std**2 * precision), jnp.full(1, -0.5 * np.log(precision)))


def test_bound_is_tight_at_the_posterior_and_rises_with_samples(key):
    std, x = 0.5, jnp.array([0.9, -0.1, 0.1])
    exact = exact_encoder(std)
    model = affine(Normal(1), std, encoder=exact)
    truth = log_prob(model, x)
    for samples in (1, 16):
        np.testing.assert_allclose(bounds(model, x, key[None], samples), truth[None], atol=1e-4)
    loose = eqx.tree_at(lambda m: m.encoder.mean, model, 0.5 * exact.mean)
    keys = jr.split(key, 4000)
    one, many = (bounds(loose, x, keys, s).mean() for s in (1, 64))
    assert one < many - 0.1 and abs(many - truth) < 0.05


def test_gradients_of_the_bound(key, x64):
    """At the exact posterior the encoder's vanishes draw by draw and the model's is that of the density."""
    std, x = 0.5, jnp.array([0.9, -0.1, 0.1])
    model = affine(Normal(1), std, encoder=exact_encoder(std))
    one = eqx.filter_grad(lambda m, k: m.log_prob_bound(x, key=k, samples=4))
    grads = eqx.filter_jit(jax.vmap(one, (None, 0)))(model, jr.split(key, 4000))
    assert jnp.abs(grads.encoder.mean).max() < 1e-5  # weight and bias of this file are single precision
    truth = eqx.filter_jit(eqx.filter_grad(lambda m: m.log_prob(x)))(model)
    found = grads.generator.bias
    assert_within_error(found.mean(0), truth.generator.bias, standard_error=found.std(0) / 4000**0.5)


def test_perturbed_fit_is_probabilistic_principal_components(key):
    """s^2 of the best linear model is the mean of the D - d least eigenvalues of the perturbed data's covariance."""
    n, noise = 300, InstanceNoise(0.2, "fixed")
    data = jax.vmap(Affine(WEIGHT, BIAS))(jr.normal(jr.key(1), (n, 1)))
    model = LatentModel(eqx.nn.Linear(1, 3, key=jr.key(2)), Normal(1))
    fitted, history = fit_latent_likelihood(model, data, noise, steps=1500, rate=0.02, key=key, progress=False)
    seen = noise.once(jax.vmap(fitted.encode)(data), key=jr.split(key, 8)[0])
    truth = jnp.linalg.eigvalsh(jnp.cov(seen.T, bias=True))[:2].mean()
    np.testing.assert_allclose(fitted.std**2, truth, rtol=0.01)
    assert_within_error(truth, 0.04, standard_error=0.04 * n**-0.5)
    np.testing.assert_allclose(history.metrics["std"][-1], fitted.std, rtol=0.01)
    assert diagnose(fitted, data).dead < 0.05


def test_more_dimensions_are_fitted_by_the_bound(key):
    """A normal law of three latents in five dimensions: variance along and across the subspace."""
    weight = jnp.linalg.qr(jr.normal(jr.key(3), (5, 3)))[0]
    data = jr.normal(jr.key(4), (500, 3)) @ weight.T
    encoder = eqx.nn.Linear(5, 6, key=jr.key(5))
    model = LatentModel(
        eqx.nn.Linear(3, 5, key=jr.key(6)),
        Normal(3),
        encoder=eqx.nn.Sequential([encoder, eqx.nn.Lambda(halves)]),
    )
    fitted, _ = fit_latent_likelihood(model, data, 0.3, steps=600, rate=0.02, samples=4, key=key, progress=False)
    drawn = jax.vmap(lambda k: fitted.sample(key=k))(jr.split(key, 4000))
    across = jnp.linalg.svd(weight, full_matrices=True)[0][:, 3:]
    assert jnp.var(drawn @ across) < 0.01
    assert 0.8 < jnp.var(drawn @ weight) < 1.2
    assert abs(fitted.std - 0.3) < 0.03


def halves(y):
    return y[:3], y[3:]


def test_warnings_of_a_degenerate_likelihood_and_of_few_nodes(key):
    x = affine(Normal(1), 0.1).generator(jnp.array([0.7]))
    floored = affine(Normal(1), 1.5e-4)
    with pytest.warns(RuntimeWarning, match="add InstanceNoise"):
        floored.log_prob(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        affine(Normal(1), 0.1).log_prob(x)
    data = jax.vmap(Affine(WEIGHT, BIAS))(jr.normal(jr.key(1), (64, 1)))
    model = LatentModel(Affine(WEIGHT, BIAS), Normal(1))
    with pytest.warns(RuntimeWarning, match=r"nodes lie .* apart where the noise is 0\.1"):
        fit_latent_likelihood(model, data, 0.1, steps=5, quadrature=8, key=key, progress=False)


def test_annealed_fit_ends_at_the_wanted_noise(key):
    data = jax.vmap(Affine(WEIGHT, BIAS))(jr.normal(jr.key(1), (100, 1)))
    model = LatentModel(eqx.nn.Linear(1, 3, key=jr.key(2)), Normal(1))
    fitted, history = fit_latent_likelihood(
        model, data, 0.2, steps=900, rate=0.02, anneal=True, key=key, progress=False
    )
    assert len(history) == 600 and history.metrics["std"][0] < 0.3  # it began at 0.5
    assert abs(fitted.std - 0.2) < 0.02


def test_recommended_noise():
    np.testing.assert_allclose(recommended_noise(200, 1, 1), 0.2659, atol=5e-5)
    np.testing.assert_allclose(recommended_noise(200, 2, 1), 0.1710, atol=5e-5)
    np.testing.assert_allclose(recommended_noise(200, 2, 1, scale=2.0), 0.3420, atol=5e-5)
    assert recommended_noise(10_000, 1e9, 1) == pytest.approx(0.01)


def test_instance_noise_of_both_modes(key):
    x = jnp.zeros((20_000, 2))
    fresh, fixed = InstanceNoise(0.3), InstanceNoise(0.3, "fixed")
    np.testing.assert_array_equal(fresh.once(x, key=key), x)
    np.testing.assert_array_equal(fixed(key, x), x)
    for noised in (fresh(key, x), fixed.once(x, key=key)):
        assert_within_error(noised.var(0), 0.09, standard_error=0.09 * (2 / 20_000) ** 0.5)
    assert not jnp.array_equal(fresh(jr.key(1), x), fresh(jr.key(2), x))


def test_select_noise_finds_the_least_distance_and_refuses_likelihoods(key):
    """Samples are the rows moved by |std - 0.5|, so 0.5 is best."""
    data = jr.normal(key, (100, 1))

    def fit(rows, std, key):
        return rows + abs(std - 0.5)

    choice = select_noise([0.0, 0.5, 2.0], data, energy_distance, fit, folds=3, key=key)
    assert choice.std == 0.5 and choice.scores.shape == (3, 3)
    for metric in ("log_prob", affine(Normal(1), 0.1).log_prob):
        with pytest.raises(InputError, match="a likelihood always prefers less noise"):
            select_noise([0.1], data, metric, fit, key=key)
    with pytest.raises(InputError, match="folds must be from 2 to the number of samples, 100, got 1"):
        select_noise([0.1], data, energy_distance, fit, folds=1, key=key)
    for bad in ([], [-0.1]):
        with pytest.raises(InputError, match="candidates must be"):
            select_noise(bad, data, energy_distance, fit, key=key)
    with pytest.raises(InputError, match="metric must give finite numbers, got nan"):
        select_noise([0.1], data, lambda x, y: np.nan, fit, key=key)


def test_same_key_same_bits_and_no_second_compilation_for_another_noise(key, caplog):
    data = jax.vmap(Affine(WEIGHT, BIAS))(jr.normal(jr.key(1), (64, 1)))
    model = LatentModel(eqx.nn.Linear(1, 3, key=jr.key(2)), Normal(1))
    options = {"steps": 20, "key": key, "progress": False}
    one, doubled = fit_latent_likelihood(model, data, 0.1, **options).model, 2 * data
    with jax.log_compiles(), caplog.at_level("WARNING"):
        same = fit_latent_likelihood(model, data, 0.1, **options).model
        other = fit_latent_likelihood(model, doubled, 0.3, **options).model
    assert not [message for message in map(logging.LogRecord.getMessage, caplog.records) if "Compiling" in message]
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same)))
    assert one.log_std != other.log_std


def test_objective_is_minus_the_mean_density(key):
    model, x = affine(Normal(1), 0.5), jr.normal(key, (50, 3))
    loss, metrics = eqx.filter_jit(LatentLikelihood(InstanceNoise(0.0)))(model, x, key)
    np.testing.assert_allclose(loss, -jnp.mean(jnp.stack([log_prob(model, row) for row in x])), rtol=1e-4)
    np.testing.assert_allclose(metrics["std"], 0.5, rtol=1e-5)


def test_refuses_bad_input(key):
    x = np.random.default_rng(0).normal(size=(20, 3))
    for wrong in (0, -1, True):
        with pytest.raises(InputError, match="dim must be a positive integer"):
            Uniform(wrong)
    with pytest.raises(InputError, match="std_min must be 0 or positive, got -1"):
        LatentModel(jnp.sin, Normal(1), std_min=-1.0)
    for wrong in (-0.1, np.inf, np.nan, np.ones(2)):
        with pytest.raises(InputError, match="std must be a finite number >= 0"):
            InstanceNoise(wrong)
    with pytest.raises(InputError, match="mode must be 'fresh' or 'fixed', got 'frozen'"):
        InstanceNoise(0.1, "frozen")
    for options, message in (
        ({"n": 1}, "n must be at least 2"),
        ({"smoothness": 0.0}, "smoothness must be positive"),
        ({"dim": -1}, "dim must be positive"),
        ({"scale": 0.0}, "scale must be positive"),
    ):
        with pytest.raises(InputError, match=message):
            recommended_noise(**{"n": 10} | options)
    deep = LatentModel(eqx.nn.Linear(3, 3, key=key), Normal(3))
    with pytest.raises(InputError, match="use importance weights"):
        deep.log_prob(jnp.ones(3))
    with pytest.raises(InputError, match="use importance weights"):
        fit_latent_likelihood(deep, x, 0.1, steps=5, key=key)
    with pytest.raises(InputError, match="needs an encoder"):
        deep.log_prob_bound(jnp.ones(3), key=key)
    model = affine(Normal(1), 0.5, encoder=exact_encoder(0.5))
    with pytest.raises(InputError, match="samples must be at least 1, got 0"):
        model.log_prob_bound(jnp.ones(3), key=key, samples=0)
    with pytest.raises(InputError, match="quadrature must be at least 2 nodes an axis, got 1"):
        model.log_prob(jnp.ones(3), quadrature=1)
    bad = x.copy()
    bad[7, 1] = np.nan
    for data, message in (
        (x[0], r"data must have shape \(n, D\) with n >= 2, got \(3,\)"),
        (x[:1], "n >= 2"),
        (bad, "data must be finite, row 7 is not"),
        (np.ones((5, 3)), "data must vary to be modelled, got 5 equal rows"),
    ):
        with pytest.raises(InputError, match=message):
            fit_latent_likelihood(affine(Normal(1), 0.5), data, 0.1, steps=5, key=key)
