import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from scipy.special import gammaln
from scipy.stats import norm, wasserstein_distance

from kinema.errors import InputError
from kinema.verify.distances import (
    classifier_two_sample,
    energy_distance,
    mmd,
    permutation_test,
    sliced_wasserstein,
)

ALL_DISTANCES = {
    "energy": lambda x, y, key: energy_distance(x, y),
    "mmd": lambda x, y, key: mmd(x, y),
    "sliced": lambda x, y, key: sliced_wasserstein(x, y, key, projections=16),
    "classifier": lambda x, y, key: classifier_two_sample(x, y, key, steps=20).accuracy,
}
each_distance = pytest.mark.parametrize("distance", ALL_DISTANCES.values(), ids=list(ALL_DISTANCES))


def pairs(key, n, m, d, mean=0.0, scale=1.0):
    key_x, key_y = jr.split(key)
    return jr.normal(key_x, (n, d)), mean + scale * jr.normal(key_y, (m, d))


def spread_of(value, key, repeats=12):
    """Mean of independent estimates and its standard error."""
    values = np.array([value(k) for k in jr.split(key, repeats)], np.float64)
    return values.mean(), values.std(ddof=1) / repeats**0.5


def test_energy_distance_of_shifted_normals(key):
    # |N(m, 2)| has mean 2 / sqrt(pi) exp(-m^2 / 4) + m (1 - 2 Phi(-m / sqrt 2))
    def mean_distance(m):
        return 2 / np.pi**0.5 * np.exp(-(m**2) / 4) + m * (1 - 2 * norm.cdf(-m / 2**0.5))

    truth = 2 * mean_distance(0.7) - 2 * mean_distance(0.0)
    estimate, error = spread_of(lambda k: energy_distance(*pairs(k, 700, 500, 1, mean=0.7)), key)
    assert_within_error(estimate, truth, standard_error=error)


@pytest.mark.parametrize("d", [3, 40])  # both forms of the squared distance
def test_energy_distance_of_scaled_normals(d, key):
    # E|X - Y| for N(0, a^2) and N(0, b^2) is sqrt(a^2 + b^2) times the mean of a chi variable
    chi = 2**0.5 * np.exp(gammaln((d + 1) / 2) - gammaln(d / 2))
    truth = chi * (2 * (1 + 1.5**2) ** 0.5 - 2**0.5 - 2**0.5 * 1.5)
    estimate, error = spread_of(lambda k: energy_distance(*pairs(k, 500, 700, d, scale=1.5)), key)
    assert_within_error(estimate, truth, standard_error=error)


@pytest.mark.parametrize("d", [2, 20])
def test_energy_distance_equals_a_plain_loop(d, key, x64):
    x, y = pairs(key, 7, 5, d, mean=0.4)

    def mean(a, b):
        return np.mean([np.linalg.norm(p - q) for p, q in itertools.product(np.asarray(a), np.asarray(b))])

    truth = 2 * mean(x, y) - mean(x, x) * 7 / 6 - mean(y, y) * 5 / 4
    assert float(energy_distance(x, y)) == pytest.approx(truth, rel=1e-12)


def test_single_precision_is_enough_for_large_samples(key):
    # distances near 14, difference near 1e-3: a plain float32 sum would lose it
    x, y = pairs(key, 4096, 4096, 100)
    with jax.enable_x64(True):
        truth = float(energy_distance(np.asarray(x, np.float64), np.asarray(y, np.float64)))
    assert float(energy_distance(x, y)) == pytest.approx(truth, abs=2e-6)


def test_mmd_closed_form(key):
    d, h, shift, scale = 4, 1.3, 0.5, 0.8

    def kernel_mean(variance, distance2):
        return (h**2 / (h**2 + variance)) ** (d / 2) * np.exp(-distance2 / (2 * (h**2 + variance)))

    truth = kernel_mean(2, 0) + kernel_mean(2 * scale**2, 0) - 2 * kernel_mean(1 + scale**2, d * shift**2)
    estimate, error = spread_of(lambda k: mmd(*pairs(k, 600, 500, d, shift, scale), bandwidth=h), key)
    assert_within_error(estimate, truth, standard_error=error)


def test_mmd_takes_the_median_distance(key):
    x, y = pairs(key, 120, 80, 3)
    pooled = np.concatenate([x, y])
    median = np.median(np.linalg.norm(pooled[:, None] - pooled, axis=-1)[np.triu_indices(200, 1)])
    np.testing.assert_allclose(mmd(x, y), mmd(x, y, bandwidth=float(median)), atol=1e-6)


def test_sliced_wasserstein_of_a_shift(key):
    # the same points moved by m: W_2 along a direction is |direction . m|, its mean square |m|^2 / d
    x = jr.normal(key, (300, 5))
    shift = jnp.array([2.0, -1.0, 0.5, 0.0, 1.0])
    value = sliced_wasserstein(x, x + shift, key, projections=4000)
    squares = 2 * (1 / 5) ** 2 * 4 / 7 * float(shift @ shift) ** 2  # variance of (direction . m)^2
    assert_within_error(float(value) ** 2, float(shift @ shift) / 5, standard_error=(squares / 4000) ** 0.5)


@pytest.mark.parametrize("sizes", [(50, 50), (40, 70), (33, 1001)])
def test_sliced_wasserstein_is_exact_in_one_dimension(sizes, key):
    x, y = pairs(key, *sizes, 1, mean=0.3)
    truth = wasserstein_distance(np.asarray(x[:, 0]), np.asarray(y[:, 0]))
    np.testing.assert_allclose(sliced_wasserstein(x, y, key, projections=3, order=1.0), truth, rtol=1e-5)


def test_classifier_finds_a_shift_as_well_as_theory_allows(key):
    x, y = pairs(key, 4000, 3000, 4, mean=0.8)
    best = norm.cdf(0.8 * 4**0.5 / 2)
    result = classifier_two_sample(x, y, key)
    assert best - 0.02 - 4 * result.standard_error < result.accuracy < best + 4 * result.standard_error


def test_classifier_finds_a_difference_of_scale_that_no_plane_separates(key):
    result = classifier_two_sample(*pairs(key, 2000, 2000, 3, scale=2.0), key)
    assert result.accuracy > 0.7


def test_classifier_error_is_right_for_equal_laws(key):
    results = [classifier_two_sample(*pairs(k, 200, 300, 2), k, steps=50) for k in jr.split(key, 30)]
    accuracy = np.array([r.accuracy for r in results])
    assert_within_error(accuracy.mean(), 0.5, standard_error=accuracy.std() / 30**0.5)
    assert 0.6 < accuracy.std() / np.mean([r.standard_error for r in results]) < 1.6


@pytest.mark.parametrize("distance", ["energy", "mmd"])
def test_equal_laws_give_zero_within_the_spread_of_shuffles(distance, key):
    tests = [permutation_test(*pairs(k, 90, 60, 3), k, distance=distance, permutations=100) for k in jr.split(key, 40)]
    score = np.array([test.value / test.spread for test in tests])
    assert_within_error(score.mean(), 0, standard_error=1 / 40**0.5)
    assert 0.6 < score.std() < 1.6
    below = np.mean([test.p_value <= 0.5 for test in tests])
    assert_within_error(below, 0.5, standard_error=0.5 / 40**0.5)


def test_shuffles_give_the_value_itself_and_a_small_p_for_other_laws(key):
    x, y = pairs(key, 90, 60, 3, mean=0.6)
    test = permutation_test(x, y, key)
    np.testing.assert_allclose(test.value, energy_distance(x, y), rtol=1e-4)
    assert test.p_value == pytest.approx(1 / 201)
    np.testing.assert_allclose(permutation_test(x, y, key, distance="mmd").value, mmd(x, y), rtol=1e-4)


@each_distance
def test_any_tree_is_flattened(distance, key):
    x, y = pairs(key, 20, 30, 6, mean=0.5)
    whole = distance(x, y, key)
    parts = [{"x": np.asarray(a[:, :4]).reshape(-1, 2, 2), "v": a[:, 4:]} for a in (x, y)]
    flat = [jnp.concatenate([a[:, 4:], a[:, :4]], 1) for a in (x, y)]  # leaves come in the order of their names
    np.testing.assert_allclose(distance(*parts, key), distance(*flat, key), rtol=1e-4)
    np.testing.assert_allclose(jax.jit(distance)(x, y, key), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [4097, 16385])
def test_rows_in_chunks_lose_nothing(rows):
    # against itself moved: every pair is known in one dimension
    x = jnp.arange(rows, dtype=jnp.float32)[:, None] / rows
    value = energy_distance(x, x + 2.0)
    assert float(value) == pytest.approx(4 - 2 * (rows + 1) / (3 * rows), rel=1e-5)


@each_distance
def test_compiled_once_for_one_shape(distance, key, caplog):
    (x, y), other = pairs(key, 11, 13, 2), jr.fold_in(key, 1)
    moved = x + 0.5
    with jax.log_compiles():
        distance(x, y, key)
        assert "Finished XLA compilation" in caplog.text or "Compiling" in caplog.text
        caplog.clear()
        distance(moved, y, other)
    assert "XLA compilation" not in caplog.text


@each_distance
def test_bad_samples_are_refused(distance, key):
    good = jnp.ones((6, 2))
    for bad, message in [
        (jnp.ones((6, 3)), r"\(6, 2\), \(6, 3\)"),
        ({"x": good}, "same structure"),
        (good.at[3, 1].set(jnp.nan), "y holds values that are not finite"),
        (jnp.ones((1, 2)), "or more, got"),
        (jnp.array(1.0), "shapes"),
        (good * 1j, "complex"),
    ]:
        with pytest.raises(InputError, match=message):
            distance(good, bad, key)
    with pytest.raises(InputError, match="same number of samples"):
        distance({"a": good, "b": good}, {"a": good, "b": good[:5]}, key)
    with pytest.raises(InputError, match="no arrays"):
        distance({}, {}, key)


def test_bad_options_are_refused(key):
    x = jnp.ones((6, 2))
    with pytest.raises(InputError, match="are all samples equal"):
        mmd(x, x)
    with pytest.raises(InputError, match="positive, got -1"):
        mmd(x, x, bandwidth=-1.0)
    with pytest.raises(InputError, match="projections=0"):
        sliced_wasserstein(x, x, key, projections=0)
    with pytest.raises(InputError, match="'energy' or 'mmd'"):
        permutation_test(x, x, key, distance="sliced")
    with pytest.raises(InputError, match="got 0"):
        permutation_test(x, x, key, permutations=0)
