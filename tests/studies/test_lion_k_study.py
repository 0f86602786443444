"""The study runs, and its references are what they are said to be."""

import jax
import jax.numpy as jnp
import numpy as np

from kinema import studies
from kinema.studies import lion_k_problems as problems


def test_smoke():
    evidence = studies.run("lion-k", "smoke")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert values["gap of Lion to the optimum in a box, by L-BFGS-B"] < 1e-8
    assert values["difference from optax.lion"] == 0 and values["steps outside after entering"] == 0
    assert values["share of Lion's weights within 1 % of their bound"] > 0.3
    assert [figure.name for figure in evidence.figures] == ["phases", "weights"]


def test_scipy_finds_the_optima_of_separable_problems():
    """Q = 1: b clipped in a box, shortened in a ball, shrunk by a penalty."""
    b = np.array([3.0, -0.2, 0.0, 0.1, -2.0, 1.0])
    with jax.enable_x64(True):
        problem = problems.Quadratic(jnp.eye(6), jnp.asarray(b))

    def least(x):
        return 0.5 * x @ x - b @ x

    assert np.isclose(problems.by_scipy(problem, problems.LION, 2.0), least(np.clip(b, -0.5, 0.5)))
    assert np.isclose(problems.by_scipy(problem, "l2", 2.0), least(0.5 * b / np.linalg.norm(b)))
    parts = [0.5 * part / max(np.linalg.norm(part), 0.5) for part in (b[:3], b[3:])]
    assert np.isclose(problems.by_scipy(problem, "rows", 2.0), least(np.concatenate(parts)))
    assert np.isclose(problems.by_scipy(problem, "l2 squared", 2.0), -0.5 * b @ b / 3)
    assert problems.by_scipy(problem, "nuclear", 2.0) is None
