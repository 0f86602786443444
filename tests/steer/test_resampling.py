import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.steer.resampling import ALL_RESAMPLERS, ess, logmeanexp, residual, systematic

each_scheme = pytest.mark.parametrize("scheme", ALL_RESAMPLERS.values(), ids=list(ALL_RESAMPLERS))


def offspring(indices, particles):
    return np.bincount(np.asarray(indices), minlength=particles)


@each_scheme
def test_offspring_are_unbiased(scheme, key):
    particles, draws = 7, 20_000
    log_weights = jnp.log(jnp.array([0.02, 0.3, 0.0, 0.11, 0.25, 0.19, 0.13]))
    indices = jax.vmap(lambda k: scheme(k, log_weights + 50.0, 10))(jr.split(key, draws))
    counts = np.stack([np.sum(np.asarray(indices) == i, 1) for i in range(particles)], 1)
    assert_within_error(
        counts.mean(0), 10 * np.exp(np.asarray(log_weights)), standard_error=counts.std(0) / draws**0.5 + 1e-6
    )


def test_noise_falls_from_multinomial_to_systematic(key):
    log_weights = 1.5 * jr.normal(key, (64,))
    values = jnp.linspace(0, 1, 64)
    spread = {
        name: float(jnp.var(jax.vmap(lambda k, f=scheme: values[f(k, log_weights)].mean())(jr.split(key, 2000))))
        for name, scheme in ALL_RESAMPLERS.items()
    }
    assert spread["systematic"] < spread["residual"] < spread["multinomial"]
    assert spread["stratified"] < spread["multinomial"]


@pytest.mark.parametrize("particles", [5, 100, 1000])
def test_systematic_gives_floor_or_ceil(particles, key, x64):
    log_weights = 2.0 * jr.normal(key, (particles,))
    expected = particles * np.asarray(jax.nn.softmax(log_weights))
    for k in jr.split(key, 20):
        counts = offspring(systematic(k, log_weights), particles)
        assert np.all((counts == np.floor(expected)) | (counts == np.ceil(expected)))


def test_systematic_gives_floor_or_ceil_in_single_precision_at_a_large_size(key):
    # A plain float32 cumulative sum breaks this by several hundredths of an offspring at this size.
    log_weights = jr.normal(key, (100_000,))
    weights = np.exp(np.asarray(log_weights, np.float64))
    expected = 100_000 * weights / weights.sum()
    counts = offspring(systematic(key, log_weights), 100_000)
    assert np.all((counts >= np.floor(expected - 1e-3)) & (counts <= np.ceil(expected + 1e-3)))


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual"])
def test_equal_weights_keep_every_particle_in_place(name, key):
    for size in (1, 3, 1000):
        kept = ALL_RESAMPLERS[name](key, jnp.full((size,), -3.7))
        np.testing.assert_array_equal(kept, np.arange(size))


def test_residual_part_is_exact(key):
    weights = jnp.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    np.testing.assert_array_equal(offspring(residual(key, jnp.log2(weights) * jnp.log(2.0), 16), 5), [8, 4, 2, 1, 1])
    for k in jr.split(key, 50):
        counts = offspring(residual(k, jnp.log(weights), 10), 5)  # 5, 2.5, 1.25, .625, .625
        assert np.all(counts >= [5, 2, 1, 0, 0]) and counts.sum() == 10


def test_stratified_draws_every_stratum_anew(key):
    # 1.5 offspring each: the first of every two particles has 1 or 2, as its own u says; one u would give all the same
    counts = np.stack([offspring(ALL_RESAMPLERS["stratified"](k, jnp.zeros(40), 60), 40) for k in jr.split(key, 50)])
    assert set(np.unique(counts)) == {1, 2}
    assert_within_error(counts[:, ::2].var(1).mean(), 0.25 * 19 / 20, standard_error=0.25 / (20 * 50) ** 0.5)


@each_scheme
def test_zero_weights_are_never_drawn(scheme, key):
    log_weights = jnp.array([-jnp.inf, 0.0, -jnp.inf, -jnp.inf, 1.0, -jnp.inf])
    indices = jax.vmap(lambda k: scheme(k, log_weights, 33))(jr.split(key, 500))
    assert set(np.unique(indices)) == {1, 4}


@each_scheme
def test_one_survivor_takes_all(scheme, key):
    for alive in (0, 3):
        log_weights = jnp.full((4,), -jnp.inf).at[alive].set(-1e5)
        np.testing.assert_array_equal(scheme(key, log_weights, 9), np.full(9, alive))


@each_scheme
@pytest.mark.parametrize("bad", [-jnp.inf, jnp.nan, jnp.inf])
def test_nothing_to_draw_from_is_flagged(scheme, bad, key):
    log_weights = jnp.full((5,), bad) if bad == -jnp.inf else jnp.zeros(5).at[2].set(bad)
    for run in (scheme, jax.jit(scheme)):
        np.testing.assert_array_equal(run(key, log_weights), np.full(5, -1))


@each_scheme
def test_same_under_vmap_and_for_the_same_key(scheme, key):
    log_weights = jr.normal(key, (3, 4097))
    keys = jr.split(key, 3)
    rows = np.stack([scheme(k, row) for k, row in zip(keys, log_weights)])
    assert rows.dtype == np.int32 and rows.min() >= 0 and rows.max() < 4097
    np.testing.assert_array_equal(rows[0], scheme(keys[0], log_weights[0]))
    # the total of the weights may be summed in another order: a neighbour, once in a while
    batch = np.asarray(jax.vmap(scheme)(keys, log_weights))
    assert np.mean(batch != rows) < 1e-3


@each_scheme
def test_bad_sizes_are_refused(scheme, key):
    with pytest.raises(InputError, match="n=0"):
        scheme(key, jnp.zeros(3), 0)
    with pytest.raises(InputError, match="0 particles"):
        scheme(key, jnp.zeros(0))


def test_ess_closed_form():
    assert ess(jnp.full((100,), 7.0)) == pytest.approx(100)
    assert ess(jnp.array([0.0, -jnp.inf, -jnp.inf])) == 1
    # weights 3 : 1, (3 + 1)^2 / (9 + 1)
    assert ess(jnp.log(jnp.array([3e30, 1e30]))) == pytest.approx(1.6, rel=1e-5)
    assert ess(jnp.full((4,), -jnp.inf)) == 0
    assert jnp.isnan(ess(jnp.array([0.0, jnp.nan])))


def test_logmeanexp_closed_form(key):
    assert logmeanexp(jnp.array([1000.0, 1000.0 + np.log(3.0)])) == pytest.approx(1000 + np.log(2.0))
    assert logmeanexp(jnp.full((4,), -jnp.inf)) == -jnp.inf
    # the mean of exp(s z) over normal z is exp(s^2 / 2)
    z, s, n = jr.normal(key, (100_000,)), 0.7, 100_000
    standard_error = ((np.exp(s**2) - 1) / n) ** 0.5
    assert_within_error(logmeanexp(s * z), s**2 / 2, standard_error=standard_error)
