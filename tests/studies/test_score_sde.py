"""The study runs, and its own samplers are what they are called."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import studies
from kinema.generate import VE, MixturePosterior, sample
from kinema.generate.solver import grids
from kinema.studies import score_sde_digits
from kinema.studies.score_sde_mixture import langevin, probability_flow


def test_smoke():
    evidence = studies.run("score-sde", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert values["error of the exact log-likelihood, worst path"] < 1e-3
    assert len(evidence.figures) == 3
    assert [len(metric.values) for metric in evidence.metrics] == [1] * len(evidence.metrics)


def test_published_predictor_is_euler_in_the_variance():
    """On VE, x' = x + (s^2 - s'^2) / 2 score; and it is first order: half the step, half the error."""
    path = VE(sigma_max=7.0)
    oracle = MixturePosterior(path, np.zeros((1, 1)), 1.0)
    ends, start = [], jnp.array([[2.0]])
    for steps in (50, 100):
        grid = grids.uniform_time(path, steps, stop=1.0)
        plan = probability_flow(path, grid)
        x = 2.0
        for s, s_next in zip(grid.s[:-1], grid.s[1:]):
            x += 0.5 * (s**2 - s_next**2) * -x / (1 + s**2)
        found = float(sample(oracle, plan, 1, key=jr.key(0), shape=(1,), start=start).x[0, 0])
        np.testing.assert_allclose(found, x, rtol=1e-4)
        ends.append(x)
    exact = 2 * ((1 + 0.01**2) / (1 + 7.0**2)) ** 0.5
    np.testing.assert_allclose((ends[0] - exact) / (ends[1] - exact), 2, atol=0.1)


def test_corrector_alone_moves_by_the_score_and_ends_clean():
    path = VE(sigma_max=7.0)
    plan = langevin(path, grids.uniform_time(path, 10), 0.16)
    assert plan.nfe == 10
    oracle = MixturePosterior(path, np.array([[3.0]]))
    x = sample(oracle, plan, 4, key=jr.key(0), shape=(1,)).x
    np.testing.assert_allclose(x, 3.0)  # a point mass: the last prediction is the point


def test_colours_are_of_one_brightness_and_the_judge_knows_real_digits():
    train, test = score_sde_digits.digits()
    assert (len(train.values), len(test.values)) == (1500, 297)
    painted = jnp.stack([score_sde_digits.paint(key, jnp.full(64, 16)) for key in jr.split(jr.key(0), 8)])
    brightness = ((painted + 1) / 2).sum(-1)
    np.testing.assert_allclose(brightness, 1, atol=1 / 17)
    assert float(painted.std((0, 1, 2)).min()) > 0.1
    pictures = jnp.stack([score_sde_digits.paint(jr.key(i), jnp.asarray(v)) for i, v in enumerate(test.values[:60])])
    assert score_sde_digits.recognised(pictures, test.labels[:60], train) > 0.9
