import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate.path import EDM, GAUSSIAN, VE, VP, Linear, SubVP
from kinema.generate.path.path import in_float64

PATH_LIST = {name: make() for name, make in GAUSSIAN.items()}
TIMES = np.linspace(0.01, 0.99, 50)


@pytest.mark.parametrize("name", PATH_LIST)
def test_log_snr_rises_and_has_its_inverse(name):
    path = PATH_LIST[name]
    times = np.linspace(max(path.t_min, 1e-6), path.t_max, 200)
    levels = in_float64(path.log_snr, times)[0]
    assert (np.diff(levels) > 0).all()
    assert np.abs(in_float64(path.time_of_log_snr, levels)[0] - times).max() < 1e-10


@pytest.mark.parametrize("name", PATH_LIST)
def test_rates_are_derivatives(name):
    path, step = PATH_LIST[name], 1e-5
    before, after = in_float64(path.coefficients, TIMES - step), in_float64(path.coefficients, TIMES + step)
    rates = in_float64(jax.vmap(path.rates), TIMES)
    for rate, low, high in zip(rates, before, after):
        assert np.allclose(rate, (high - low) / (2 * step), rtol=1e-6, atol=1e-9)
    s_ds = in_float64(jax.vmap(path.s_ds), TIMES)[0]
    assert np.allclose(s_ds, rates[2] * in_float64(path.coefficients, TIMES)[2], rtol=1e-9)


@pytest.mark.parametrize(
    ("path", "drift", "diffusion"),
    [
        (VP(), lambda u, s: -0.5 * (0.1 + 19.9 * u), lambda u, s: 0.1 + 19.9 * u),
        (
            SubVP(),
            lambda u, s: -0.5 * (0.1 + 19.9 * u),
            lambda u, s: (0.1 + 19.9 * u) * -np.expm1(-2 * (0.1 * u + 19.9 * u**2 / 2)),
        ),
        (VE(), lambda u, s: 0 * u, lambda u, s: 2 * np.log(50 / 0.01) * s**2),
    ],
    ids=["vp", "sub-vp", "ve"],
)
def test_published_equations_follow_from_the_coefficients(path, drift, diffusion):
    """dx = f x du + g dw of Song et al., with u = 1 - t."""
    a, _, s = in_float64(path.coefficients, TIMES)
    da = in_float64(jax.vmap(path.rates), TIMES)[0]
    s_ds = in_float64(jax.vmap(path.s_ds), TIMES)[0]
    assert np.allclose(-da / a, drift(1 - TIMES, s), atol=1e-9)
    assert np.allclose(2 * (s**2 * da / a - s_ds), diffusion(1 - TIMES, s), rtol=1e-9)


def test_published_constants():
    a = in_float64(VP().coefficients, 0.0)[0]
    assert abs(a - 0.0065716) < 1e-7
    assert abs(in_float64(SubVP().coefficients, 0.0)[2] - 0.99995681) < 1e-8
    assert np.allclose(in_float64(VE().coefficients, [0.0, 1.0])[2], [50, 0.01])
    assert np.allclose(in_float64(EDM().coefficients, [0.0, 1.0])[2], [80, 0.002])
    assert np.allclose(in_float64(Linear().coefficients, [0.25])[0], 0.25)


@pytest.mark.parametrize("name", PATH_LIST)
def test_single_precision_at_both_ends(name):
    path = PATH_LIST[name]
    times = np.float32([1e-7, 1e-5, 1 - 1e-5, 1 - 1e-7])
    for single, double in zip(path.coefficients(jnp.asarray(times)), in_float64(path.coefficients, times)):
        assert np.isfinite(single).all() and np.allclose(single, double, rtol=1e-4)
    assert np.isfinite(path.log_snr(jnp.asarray(times))).all()
    assert np.isfinite(path.signal(jnp.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("name", PATH_LIST)
def test_perturb_has_the_moments_of_the_path(name, key):
    path, t, n = PATH_LIST[name], 0.6, 20_000
    x1 = {"x": jnp.array([1.5, -0.5]), "v": jnp.ones((1, 2))}
    noised = jax.jit(jax.vmap(lambda k: path.perturb(k, t, x1)))(jr.split(key, n))
    a, _, s = (float(c) for c in path.coefficients(t))
    for name_, leaf in x1.items():
        assert_within_error(noised.x[name_].mean(0), a * leaf, standard_error=s / n**0.5)
        assert_within_error(noised.x[name_].var(0), s**2, standard_error=s**2 * (2 / n) ** 0.5)
    assert np.allclose(noised.x["x"], a * x1["x"] + s * noised.z["x"], rtol=1e-5, atol=1e-5 * s)


@pytest.mark.parametrize("name", PATH_LIST)
def test_source_has_its_density(name, key):
    path, n = PATH_LIST[name], 4_000
    like = jax.ShapeDtypeStruct((2,), jnp.float32)
    x = jax.jit(jax.vmap(lambda k: path.sample_source(k, like)))(jr.split(key, n))
    s = float(path.coefficients(0.0)[2])
    log_prob = jax.jit(jax.vmap(path.source_log_prob))(x)
    entropy = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(s))
    assert_within_error(-log_prob.mean(), entropy, standard_error=1 / n**0.5)
    assert np.allclose(log_prob[0], -0.5 * (x[0] ** 2).sum() / s**2 - np.log(2 * np.pi * s**2), rtol=1e-4)


def test_bisection_serves_paths_without_an_inverse():
    class Bare(VP):
        time_of_log_snr = GAUSSIAN["vp"].__mro__[1].time_of_log_snr

    levels = in_float64(VP().log_snr, TIMES)[0]
    assert np.abs(in_float64(Bare().time_of_log_snr, levels)[0] - TIMES).max() < 1e-10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(beta_min=2.0, beta_max=1.0), "beta_min=2.0, beta_max=1.0"),
        (lambda: SubVP(beta_min=0.0), "beta_min must be positive"),
        (lambda: VE(sigma_min=3.0, sigma_max=1.0), "below sigma_max"),
        (lambda: EDM(rho=0.5), "rho must be at least 1"),
        (lambda: VP().perturb(jr.key(0), 0.5, jnp.zeros(2), jnp.zeros(2)), "has no origin"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
