"""Draws of classes: the truncated law against draws, and temperature 1 where float32 usually is colder."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from scipy import stats

from kinema.errors import InputError
from kinema.generate.discrete import truncation
from kinema.generate.discrete.categorical import LARGEST, categorical, exponential, tempered

ZIPF = 1 / np.arange(1, 2001) / (1 / np.arange(1, 2001)).sum()


def test_truncated_law_against_draws():
    """Gumbel noise cut at that of four bits; the formula is exact, the plain law is not what is drawn."""
    p, largest, n = np.array([0.5, 0.2, 0.15, 0.1, 0.05]), truncation.largest_gumbel(4), 400_000
    u = np.random.default_rng(0).random((n, 5)) * np.exp(-np.exp(-largest))
    drawn = np.bincount((np.log(p) - np.log(-np.log(u))).argmax(1), minlength=5) / n
    law = truncation.truncated_law(p, largest)
    assert_within_error(drawn, law, standard_error=np.sqrt(law * (1 - law) / n))
    assert np.abs(law - p).max() > 0.01
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(truncation.truncated_law(p, 40.0), p, rtol=1e-9)
    np.testing.assert_allclose(truncation.truncated_law(np.full(4, 0.25), 1.0), 0.25)
    np.testing.assert_allclose(truncation.truncated_law(np.array([0.0, 1.0]), 1.0), [0, 1])


@pytest.mark.parametrize(
    ("bits", "entropies"),
    [(24, (5.622, 5.602, 5.458)), (23, (5.619, 5.579, 5.325)), (11, (3.550, 3.016, 2.878)), (8, (2.686, 2.566, 2.565))],
)
def test_one_stage_law_as_published(bits, entropies):
    for steps, wanted in zip((16, 128, 1024), entropies):
        law = truncation.one_stage_law(ZIPF, steps, truncation.largest_gumbel(bits))
        np.testing.assert_allclose(truncation.entropy(law), wanted, atol=0.002)


def test_effective_temperature_of_the_one_stage_draw():
    """.887 at 4096 steps with the 23 bits of JAX's float32; with the clocks of `categorical` 1, were it to draw so."""
    cold = truncation.one_stage_law(ZIPF, 4096, truncation.largest_gumbel(23))
    np.testing.assert_allclose(truncation.effective_temperature(ZIPF, cold), 0.887, atol=5e-4)
    exact = truncation.one_stage_law(ZIPF, 4096, LARGEST)
    np.testing.assert_allclose(truncation.effective_temperature(ZIPF, exact), 1, atol=5e-4)
    for temperature in (0.4, 1.0, 2.5):
        law = ZIPF ** (1 / temperature)
        np.testing.assert_allclose(truncation.effective_temperature(ZIPF, law), temperature, rtol=1e-6)


def test_bits_of_jax(key):
    """The largest Gumbel number of each precision, as documented in `largest_gumbel`."""
    for dtype, bits in ((jnp.float32, 23), (jnp.float16, 10), (jnp.bfloat16, 7)):
        top = float(-jnp.log(-jnp.log(jnp.array(1 - 2.0**-bits, dtype))).astype(jnp.float32))
        found = float(jr.gumbel(key, (2**20,), dtype, mode="low").max())
        assert found <= top * 1.001
        np.testing.assert_allclose(top, truncation.largest_gumbel(bits), rtol=0.04)
        if bits < 20:
            np.testing.assert_allclose(found, top)


def test_draws_follow_their_law(key):
    p, n = np.array([0.5, 0.3, 0.15, 0.05, 0.0]), 100_000
    draw = jax.jit(lambda key, log_p: categorical(key, jnp.broadcast_to(log_p, (n, 5))))
    for log_p in (jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(p)) + 3):
        seen = np.bincount(draw(key, log_p), minlength=5)
        assert seen[4] == 0
        assert stats.chisquare(seen[:4], n * p[:4]).pvalue > 1e-4
    half = categorical(key, jnp.broadcast_to(jnp.log(jnp.asarray(p)).astype(jnp.bfloat16), (n, 5)))
    seen = np.bincount(half, minlength=5)
    np.testing.assert_allclose(seen / n, p, atol=0.01)


def test_early_clocks_are_exact():
    """The clocks that decide are as fine as float32: what bounds the noise of the default is not there."""
    rng = np.random.default_rng(0)
    bits = np.concatenate([np.arange(2000), rng.integers(2**31, size=2000), [2**32 - 1]]).astype(np.uint32)
    wanted = -np.log1p(-(bits.astype(np.float64) + 0.5) / 2**32)
    found = exponential(jnp.asarray(bits))
    np.testing.assert_allclose(found[:-1], wanted[:-1], rtol=3e-7)
    np.testing.assert_allclose(found[-1], 24 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(-np.log(found[0]), LARGEST, atol=0.01)


def test_tempered():
    log_p = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    np.testing.assert_allclose(jax.nn.softmax(tempered(log_p, 0.5)), np.array([4, 25, 9]) / 38, rtol=1e-5)
    assert tempered(log_p, 0.0).tolist() == [-np.inf, 0.0, -np.inf]
    assert np.isfinite(tempered(log_p, top_p=0.5)).tolist() == [False, True, False]
    assert np.isfinite(tempered(log_p, top_p=0.51)).tolist() == [False, True, True]
    assert np.isfinite(tempered(log_p, top_p=1.0)).all()


def test_variety_of_sequences():
    x = np.array([[0, 1, 2, 3], [5, 5, 5, 5]])
    np.testing.assert_allclose(truncation.unigram_entropy(x), np.log(4) / 2)
    assert truncation.distinct_share(x) == 4 / 6
    assert truncation.distinct_share(x, 1) == 5 / 8


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"bits must be in 1\.\.52, got 0"):
        truncation.largest_gumbel(0)
    with pytest.raises(InputError, match="sum 1"):
        truncation.truncated_law(np.array([0.5, 0.6]), 3.0)
    with pytest.raises(InputError, match="steps must be at least 1"):
        truncation.one_stage_law(ZIPF, 0, 3.0)
    with pytest.raises(InputError, match="q must be 2 numbers"):
        truncation.effective_temperature(np.array([0.4, 0.6]), np.ones(3))
    with pytest.raises(InputError, match="uniform"):
        truncation.effective_temperature(np.full(4, 0.25), np.ones(4))
    with pytest.raises(InputError, match=r"size must be in 1\.\.3"):
        truncation.distinct_share(np.zeros((2, 3), int), 4)
