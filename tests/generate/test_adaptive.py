"""Truth: for normal data the flow is an affine map in closed form, whatever the clock."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate import VE, VP, Linear, SubVP
from kinema.generate.adaptive import solve_adaptive
from kinema.generate.generator import AbstractGenerator
from kinema.generate.mixtures import MixturePosterior

MEAN, STD = np.array([1.0, -0.5]), 0.4
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def normal(path) -> MixturePosterior:
    return MixturePosterior(path, MEAN[None], STD**2)


def carried(path, x, start, stop):
    """The flow of N(MEAN, STD^2) from one time to another."""
    (a, _, s), (end_a, _, end_s) = path.coefficients(jnp.asarray(start)), path.coefficients(jnp.asarray(stop))
    stretch = jnp.sqrt(((end_a * STD) ** 2 + end_s**2) / ((a * STD) ** 2 + s**2))
    return end_a * MEAN + stretch * (x - a * MEAN)


@pytest.mark.parametrize(
    ("path", "variable"),
    [(VP(), "log-snr"), (VE(), "t"), (Linear(), "noise-ratio")],
    ids=["vp", "ve", "linear"],
)
def test_flow_of_normal_data_is_affine_there_and_back(path, variable, x64):
    gen, ends, x = normal(path), (path.t_max, path.t_min), jnp.array([0.7, -0.9])
    there = solve_adaptive(gen, x, variable=variable, span=ends, **TIGHT)
    np.testing.assert_allclose(there.x, carried(path, x, *ends), rtol=1e-6)
    back = solve_adaptive(gen, there.x, variable=variable, **TIGHT)
    np.testing.assert_allclose(back.x, x, atol=1e-6)


def test_single_precision_alone_and_together():
    """To the data end of sub-VP, where s = 1e-6; several at once are the same as one by one."""
    path, xs = SubVP(), jnp.array([[0.7, -1.1], [-1.0, 2.0], [0.5, 0.0]])
    together = jax.vmap(lambda x: solve_adaptive(normal(path), x))(xs)
    np.testing.assert_allclose(together.x, carried(path, xs, 0.0, path.t_max), atol=1e-3)
    assert int(together.nfe.max()) < 200
    alone = solve_adaptive(normal(path), xs[1])
    np.testing.assert_allclose(alone.x, together.x[1], atol=1e-5)
    assert int(alone.nfe) == int(together.nfe[1])


def test_noise_keeps_the_marginals(optimised, key):
    """At the reverse level and twice it."""
    path, n, stop = VP(), 120, 0.9
    gen = normal(path)
    key_source, key_noise = jr.split(key)
    a, _, s = path.coefficients(0.0)
    starts = a * MEAN + jnp.sqrt((a * STD) ** 2 + s**2) * jr.normal(key_source, (n, 2))

    def run(level, x, k):
        return solve_adaptive(gen, x, form="sde", noise_level=level, key=k, span=(0.0, stop)).x

    levels, keys = jnp.array([1.0, 2.0]), jr.split(key_noise, n)
    ends = jax.jit(jax.vmap(jax.vmap(run, (None, 0, 0)), (0, None, None)))(levels, starts, keys)
    a, _, s = (float(value) for value in path.coefficients(stop))
    variance = (a * STD) ** 2 + s**2
    for x in np.asarray(ends):
        assert_within_error(x.mean(0), a * MEAN, standard_error=(variance / n) ** 0.5)
        assert_within_error(x.var(0), variance, standard_error=variance * (2 / n) ** 0.5)


class Counting(AbstractGenerator):
    """A generator that tells the host of each call."""

    inner: MixturePosterior
    seen: object

    path = property(lambda self: self.inner.path)
    predicts = property(lambda self: "data")
    sigma_data = property(lambda self: 1.0)
    calls = property(lambda self: 1)

    def raw(self, t, x, cond=None, x0=None):
        jax.debug.callback(self.seen, t)
        return self.inner.raw(t, x)


@pytest.mark.parametrize(
    "options",
    [{"segments": [0.5]}, {"segments": [0.5], "between": lambda t, x, key: x}, {"method": "heun", "dt": 0.5}],
    ids=["tsit5", "tsit5 in two", "heun"],
)
def test_evaluations_are_those_that_were_made(options):
    seen = []
    found = solve_adaptive(Counting(normal(VP()), seen.append), jnp.ones(2), span=(0.0, 0.9), **options)
    jax.block_until_ready(found.x)
    jax.effects_barrier()
    assert int(found.nfe) == len(seen)


def test_segments_stop_and_change_the_sample(x64):
    path, x, times = Linear(), jnp.array([0.5, 0.5]), [0.3, 0.6]
    gen, options = normal(path), {"variable": "noise-ratio", **TIGHT}
    plain = solve_adaptive(gen, x, segments=times, **options)
    for i, t in enumerate(times):
        np.testing.assert_allclose(plain.path[i], carried(path, x, path.t_min, t), atol=1e-6)
    asked = []

    def double(t, x, key):
        asked.append(t)
        return 2 * x

    changed = solve_adaptive(gen, x, segments=times, between=double, **options)
    truth = 2 * carried(path, 2 * carried(path, x, path.t_min, 0.3), 0.3, 0.6)
    assert asked == times
    np.testing.assert_allclose(changed.path[1], truth, atol=1e-6)
    np.testing.assert_allclose(changed.x, carried(path, truth, 0.6, path.t_max), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "pde"}, "form must be"),
        ({"variable": "sigma"}, "unknown variable 'sigma'"),
        ({"method": "tsit"}, "tsit5"),
        ({"span": (0.0, 1.5)}, "in \\[0, 1\\]"),
        ({"span": (0.1, 1.0)}, "infinite at t=1"),
        ({"segments": [0.6, 0.4]}, "in one order"),
        ({"between": lambda t, x, key: x}, "give segments"),
        ({"form": "sde", "noise_level": 0.0}, "form='ode'"),
        ({"form": "sde"}, "key"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        solve_adaptive(normal(VP()), jnp.zeros(2), **options)
