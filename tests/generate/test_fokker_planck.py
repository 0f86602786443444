"""Residuals vanish for exact laws, are what the flow's likelihood misses, and fall when they are regularised."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import learn, models
from kinema.errors import InputError
from kinema.generate import (
    VE,
    VP,
    Denoising,
    FokkerPlanck,
    Generator,
    Linear,
    MixturePosterior,
    fp_residual,
    log_potential,
)
from kinema.generate.fields import Moments
from kinema.generate.fokker_planck import log_time_rate, ou_time
from kinema.generate.objective import LogUniformTime


class Waves(eqx.Module):
    """A potential without training, for any parameterization."""

    def potential(self, x, signal, cond=None):
        return jnp.sin(x @ jnp.array([1.0, -0.7]) + signal) + 0.3 * x[0] * jnp.cos(x[1])

    def __call__(self, x, signal, cond=None):
        return jax.grad(self.potential)(x, signal, cond)


class Loose(eqx.Module):
    """A network that is not a gradient."""

    def __call__(self, x, signal, cond=None):
        return jnp.array([x[1] ** 2, jnp.sin(x[0])]) * signal


@pytest.mark.parametrize("path", [VP(), VE(), Linear()], ids=["vp", "ve", "linear"])
def test_exact_laws_have_no_residual(path, x64):
    exact = MixturePosterior(path, [[1.0, 0.0], [-1.0, 0.5]], [0.2, 0.1], [0.3, 0.7])
    form = "score" if isinstance(path, VP) else "log_density"
    residual = jax.jit(lambda t, x: fp_residual(exact, t, x, form=form))
    for t in (0.2, 0.6, 0.9):
        assert jnp.abs(residual(jnp.asarray(t), jnp.array([0.3, -0.4]))).max() < 1e-10


@pytest.mark.parametrize("predicts", ["residual", "score", "velocity"])
def test_potential_has_the_score_as_its_gradient(predicts, x64):
    gen = Generator(VP(), Waves(), predicts=predicts, sigma_data=1.3)
    t, x = jnp.asarray(0.7), jnp.array([0.4, -0.9])
    found, score = jax.jit(lambda t, x: (jax.grad(lambda y: log_potential(gen, t, y))(x), gen(t, x).score))(t, x)
    np.testing.assert_allclose(found, score, rtol=1e-10)


def test_both_forms_and_both_divergences_agree(x64, key):
    """grad of R is the residual of the score; in two dimensions one probe has two values, their mean the truth."""
    gen = Generator(VP(), Waves(), predicts="residual")

    @jax.jit
    def all_ways(t, x, keys):
        truth, slope = jax.value_and_grad(lambda y: fp_residual(gen, t, y))(x)
        estimates = jax.vmap(lambda k: fp_residual(gen, t, x, divergence="hutchinson", key=k))(keys)
        return truth, slope, fp_residual(gen, t, x, form="score"), estimates

    truth, slope, score, estimates = all_ways(jnp.asarray(0.6), jnp.array([0.2, 0.5]), jr.split(key, 64))
    np.testing.assert_allclose(score, slope, rtol=1e-8)
    assert len(np.unique(np.round(estimates, 8))) == 2
    np.testing.assert_allclose((estimates.min() + estimates.max()) / 2, truth, rtol=1e-8)


def test_residual_is_what_the_potential_misses_of_the_likelihood(x64):
    """log p_flow(x_1) = u(x_1) + (log p_source - u)(x_0) + int R dt along the flow."""
    gen = Generator(VP(), Waves(), predicts="noise")
    path, steps = gen.path, 400
    levels = jnp.linspace(path.log_snr(0.3), path.log_snr(0.9), steps + 1)

    def slope(level, state):
        t = path.time_of_log_snr(level)
        moments = Moments.at(path, t)
        rate = moments.da / moments.a - moments.s_ds / moments.s**2

        def velocity(y):
            return gen(t, y).velocity

        x = state[0]
        return velocity(x) / rate, -jnp.trace(jax.jacfwd(velocity)(x)) / rate, fp_residual(gen, t, x) / rate

    @jax.jit
    def run(x):
        def body(state, ends):
            here, there = ends
            step = there - here

            def ahead(k, share):
                return jax.tree.map(lambda y, dy: y + share * step * dy, state, k)

            k1 = slope(here, state)
            k2 = slope(here + step / 2, ahead(k1, 0.5))
            k3 = slope(here + step / 2, ahead(k2, 0.5))
            k4 = slope(there, ahead(k3, 1.0))
            mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return ahead(mean, 1.0), None

        return jax.lax.scan(body, (x, jnp.zeros(()), jnp.zeros(())), (levels[:-1], levels[1:]))[0]

    start = jnp.array([0.6, -0.8])
    end, gained, residual = run(start)
    missed = log_potential(gen, path.time_of_log_snr(levels[-1]), end) - log_potential(gen, 0.3, start) + residual
    assert abs(residual) > 0.05
    assert abs(gained - missed) < 1e-8


def test_regulariser_lowers_the_residual(key):
    data = jnp.concatenate([jr.normal(key, (256, 1)) * 0.2 + 1, jr.normal(key, (256, 1)) * 0.3 - 1])
    gen = Generator(VP(), models.PotentialMLP((1,), width=16, depth=1, key=key), predicts="residual")
    times = LogUniformTime(0.1, 20.0)

    optimizer = learn.adam(5e-3, 200)

    def residual(weight):
        objective = FokkerPlanck(Denoising(times=times), jnp.asarray(weight), times, points=32)
        how = {"optimizer": optimizer, "steps": 200, "batch_size": 64, "chunk": 100, "progress": False}
        return float(np.mean(learn.fit(gen, objective, data, key=key, **how).history.metrics["residual"][-50:]))

    assert residual(1.0) < 0.7 * residual(0.0)


def test_times_are_log_uniform_in_the_time_of_ornstein_uhlenbeck():
    """VP is that process run on a clock of its own: a = e^-tau; and the rate is that of log tau."""
    path, quantile = VP(), jnp.array([0.0, 0.5, 1.0])
    t = LogUniformTime(0.1, 10.0)(path, quantile)
    tau = -jnp.log(path.coefficients(t)[0])
    low, high = np.log(ou_time(jnp.array([0.1, 10.0])))
    np.testing.assert_allclose(jnp.log(tau), high + quantile * (low - high), atol=1e-3)

    def log_tau(t):
        return jnp.log(-jnp.log(path.coefficients(t)[0]))

    np.testing.assert_allclose(log_time_rate(path, 0.6), -jax.grad(log_tau)(0.6), rtol=1e-4)


def test_bad_input(key):
    loose = Generator(VP(), Loose())
    t, x = 0.5, jnp.ones(2)
    with pytest.raises(InputError, match="no potential; use form='score'"):
        fp_residual(loose, t, x)
    with pytest.raises(InputError, match="no potential; use form='score'"):
        log_potential(loose, t, x)
    with pytest.raises(InputError, match="form must be one of"):
        fp_residual(loose, t, x, form="density")
    with pytest.raises(InputError, match="divergence must be one of"):
        fp_residual(loose, t, x, form="score", divergence="none")
    with pytest.raises(InputError, match="needs key"):
        fp_residual(loose, t, x, form="score", divergence="hutchinson")
    with pytest.raises(InputError, match="takes 65 derivatives"):
        fp_residual(loose, t, jnp.ones(65), form="score")
    with pytest.raises(InputError, match="noise are both present"):
        fp_residual(Generator(Linear(), Loose()), 1.0, x, form="score")
    with pytest.raises(InputError, match="weight must not be negative"):
        FokkerPlanck(weight=-1.0)
    with pytest.raises(InputError, match="points must be at least 2"):
        FokkerPlanck(points=1)
    with pytest.raises(InputError, match="least < most"):
        LogUniformTime(2.0, 1.0)
