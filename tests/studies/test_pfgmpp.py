"""The study runs, and its denoiser, its disturbance and its rounding are what they are called."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import studies
from kinema.generate import Generator, MixturePosterior, PoissonFlow, bind, sample
from kinema.generate.solver import grids, heun
from kinema.models.layers import Linear
from kinema.studies.pfgmpp_digits import ExactDenoiser, disturbed, halves, rounded


def test_smoke():
    evidence = studies.run("pfgmpp", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert [picture.name for picture in evidence.figures] == ["robustness", "disturbed"]
    assert all(np.isfinite(metric.values).all() for metric in evidence.metrics)
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert values["error of the log-likelihood"] < 1e-6


@pytest.mark.parametrize("D", [8.0, np.inf])
def test_denoiser_is_the_posterior_of_point_masses(D):
    points, others = halves(0, 40)
    path = PoissonFlow(D=D)
    mixture = MixturePosterior(path, points)

    @jax.jit
    def both(t, x):
        return ExactDenoiser(path, points=points).raw(t, x), mixture(t, x).data

    for t in (0.0, 0.6, 0.9):
        found, truth = both(t, others[0] + path.coefficients(t)[2] * jr.normal(jr.key(0), (64,)))
        np.testing.assert_allclose(found, truth, atol=2e-4)


def test_disturbance_is_added_before_every_step_and_carried_on():
    """One point mass at 0: a step multiplies x by s' / s, so the noise of all steps adds up in closed form."""
    path, amount, n = PoissonFlow(D=np.inf), 0.5, 20_000
    gen = ExactDenoiser(path, points=jnp.zeros((1, 2)))
    grid = grids.karras(path, 6, clean=False)
    rows = disturbed(bind(heun(path, grid), gen), amount)
    np.testing.assert_allclose(rows.n, np.repeat(amount * grid.s[:-1], 2) * (np.arange(12) % 2 == 0), rtol=1e-6)
    x = sample(gen, rows, n, key=jr.key(0), shape=(2,)).x
    variance = grid.s[-1] ** 2 * (1 + grid.steps * amount**2)
    assert abs(float(x.var()) / variance - 1) < 4 * (2 / (2 * n)) ** 0.5


def test_halves_share_no_digit():
    first, rest = halves(3, 900)
    assert (len(first), len(rest)) == (900, 897)
    assert abs(float(jnp.concatenate([first, rest]).std()) - 0.5) < 1e-5
    other, _ = halves(4, 900)
    assert not np.array_equal(first, other)
    known = {row.tobytes() for row in np.asarray(first)}
    assert not any(row.tobytes() in known for row in np.asarray(rest))


def test_rounding_keeps_the_largest_weight_and_few_values():
    layer = Linear(8, 16, key=jr.key(0))
    coarse = rounded(Generator(PoissonFlow(), layer), 4).net
    assert len(np.unique(coarse.weight)) <= 15
    np.testing.assert_allclose(jnp.abs(coarse.weight).max(), jnp.abs(layer.weight).max(), rtol=1e-6)
    unit = jnp.abs(layer.weight).max() / 7
    assert float(jnp.abs(coarse.weight - layer.weight).max()) <= 0.5001 * float(unit)
    assert jax.tree.structure(coarse) == jax.tree.structure(layer)
