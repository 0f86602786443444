"""All paths through one protocol: what holds for every row of the table, with exact posteriors in double precision."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.generate import CoupledPosterior, MixturePosterior, sample
from kinema.generate.fields import Moments
from kinema.generate.generator import moments_in_float64
from kinema.generate.path import PATHS, Interpolant, Linear, MeanReverting, Mirror, PoissonFlow
from kinema.generate.path.path import in_float64
from kinema.generate.solver import euler, grids

MEANS, STARTS = np.array([[-1.0, 0.5], [1.2, -0.3], [0.0, 1.0]]), np.array([[0.4, -0.8], [-0.5, 0.1]])
RISING = [name for name in PATHS if name not in ("interpolant", "mirror")]
VARIANTS = {
    **{name: make() for name, make in PATHS.items()},
    "pfgmpp-1": PoissonFlow(D=1.0),
    "interpolant-trig": Interpolant("trig", "quadratic"),
    "interpolant-sine": Interpolant("encode-decode", "sine"),
    "interpolant-sigmoid": Interpolant("linear", "sigmoid", scale=0.5),
    "interpolant-own": Interpolant(lambda t, square: (t**2, (1 - t) ** 2), lambda t: t * (1 - t)),
    "mean-reverting-constant": MeanReverting(schedule="constant"),
}


def oracle(path):
    if path.origin == "endpoint":
        normal = Linear()
        return CoupledPosterior(path, MixturePosterior(normal, STARTS, 0.2), MixturePosterior(normal, MEANS, 0.1))
    return MixturePosterior(path, MEANS, 0.1 if path.noise.gaussian else 0.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_density_velocity_and_score_agree(name, x64):
    """d log p / dt + v . grad log p + div v = 0, and the score is grad log p."""
    path = VARIANTS[name]
    gen, x0 = oracle(path), jnp.array([0.3, -0.2]) if path.origin == "condition" else None
    origin = {} if path.origin == "endpoint" else {"x0": x0}

    def terms(t, x):
        prediction = gen(t, x, x0=x0)
        dt = jax.jvp(lambda now: gen.log_prob(now, x, **origin), (t,), (jnp.ones_like(t),))[1]
        score = jax.grad(lambda y: gen.log_prob(t, y, **origin))(x)
        divergence = jnp.trace(jax.jacfwd(lambda y: gen(t, y, x0=x0).velocity)(x))
        flux = prediction.velocity @ score
        residual = (dt + flux + divergence) / (1 + jnp.abs(dt) + jnp.abs(flux) + jnp.abs(divergence))
        return residual, jnp.abs(prediction.score - score).max() / (1 + jnp.abs(score).max())

    t = jnp.linspace(0.07, 0.93, 7)
    moments = jax.vmap(lambda one: Moments.at(path, one))(t)
    x = jr.normal(jr.key(1), (7, 2)) * jnp.sqrt(moments.a**2 + moments.b**2 + moments.s**2)[:, None]
    residual, gap = jax.jit(jax.vmap(terms))(t, x)
    assert np.abs(residual).max() <= 1e-12
    assert gap.max() <= 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_single_precision_loses_at_most_three_digits(name):
    path = VARIANTS[name]
    ends = np.float32([1e-7, 1 - 1e-7])
    for single, double in zip(path.coefficients(jnp.asarray(ends)), in_float64(path.coefficients, ends)):
        assert np.allclose(single, double, rtol=1e-4, atol=1e-6)
    times = np.float32([path.t_min, 0.3, 0.5, path.t_max])
    low = jax.vmap(lambda t: Moments.at(path, t))(jnp.asarray(times))
    high = moments_in_float64(path, times.astype(np.float64))
    for field, single, double in zip(Moments._fields, low, high):
        assert np.isfinite(single).all(), field
        assert np.allclose(single, double, rtol=1e-4, atol=1e-6 * np.abs(double).max()), field
    assert np.isfinite(path.signal(jnp.array([0.0, 0.5, 1.0]))).all()


@pytest.mark.parametrize("name", RISING)
def test_log_snr_rises_and_has_its_inverse(name):
    path = PATHS[name]()
    times = np.linspace(max(path.t_min, 1e-6), path.t_max, 200)
    levels = in_float64(path.log_snr, times)[0]
    assert (np.diff(levels) > 0).all()
    assert np.abs(in_float64(path.time_of_log_snr, levels)[0] - times).max() < 1e-10
    moments = moments_in_float64(path, times)
    assert (moments.s**2 * moments.da / moments.a - moments.s_ds > 0).all()  # w^2 of the reverse level, halved


@pytest.mark.parametrize("name", VARIANTS)
def test_data_are_reached_from_the_source(name, key):
    """The probability flow of exact fields carries draws of the source to the mixture."""
    path, n = VARIANTS[name], 2000
    gen = oracle(path)
    if path.origin == "endpoint":
        x0, ends = jax.vmap(gen.draw)(jr.split(key, n))
    else:
        x0 = jnp.tile(jnp.array([0.3, -0.2]), (n, 1)) if path.origin == "condition" else None
        ends = jax.vmap(gen.draw)(jr.split(key, n))
    start = ends if isinstance(path, Mirror) else None
    if isinstance(path, Mirror | Interpolant):
        grid, field = grids.from_times(path, np.linspace(path.t_min, path.t_max, 101)), "velocity"
    else:
        levels = in_float64(path.log_snr, [max(path.t_min, 1e-4), path.t_max])[0]
        times = in_float64(path.time_of_log_snr, np.linspace(*levels, 101))[0]
        grid, field = grids.from_times(path, times), "data"
    plan = euler(path, grid, extrapolates=field)
    x = sample(gen, plan, n, key=key, shape=(2,), x0=x0, start=start).x.clip(
        -4, 4
    )  # the last noise may be heavy-tailed
    truth = MEANS.mean(0), (0.1 if path.noise.gaussian else 0.0) + MEANS.var(0)
    spread = np.sqrt(truth[1] / n)
    last = path.coefficients(jnp.asarray(path.t_max))
    assert_within_error(x.mean(0), truth[0], standard_error=spread, times=5)
    assert np.allclose(x.var(0), truth[1] + float(last[2]) ** 2, rtol=0.12, atol=0.02)
