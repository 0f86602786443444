"""The study runs, and its measure of divergence is right where it is known."""

import jax
import jax.random as jr
import numpy as np

from kinema import studies
from kinema.studies import stochastic_interpolants as study


def test_smoke():
    evidence = studies.run("stochastic-interpolants", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert [picture.name for picture in evidence.figures] == ["divergence", "learnt", "bridge", "digits"]
    assert all(np.isfinite(metric.values).all() for metric in evidence.metrics)


def test_divergence_of_a_sample_of_the_truth_is_its_sampling_error(key):
    n, bins = 200_000, 120
    x = np.asarray(jax.vmap(study.ENDS.draw)(jr.split(key, n)))[:, 0]
    assert study.histogram_divergence(x) < 2 * bins / (2 * n)  # the mean is (bins - 1) / 2n
    narrow = np.asarray(jax.random.normal(key, (n,)))

    def truth(v):
        return 0.5 * sum(np.exp(-0.5 * (v - m) ** 2 / 0.25) / (2 * np.pi * 0.25) ** 0.5 for m in (-1.5, 1.5))

    grid = np.linspace(-5, 5, 20_001)
    exact = (truth(grid) * (np.log(truth(grid)) + 0.5 * grid**2 + 0.5 * np.log(2 * np.pi))).sum() * (grid[1] - grid[0])
    assert abs(study.histogram_divergence(narrow) - exact) < 0.02
