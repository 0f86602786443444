"""The study runs, and its measure of the stationary law is right where it is known."""

import numpy as np

from kinema import studies
from kinema.studies import neural_differential_equations_bistable as wells


def test_smoke():
    evidence = studies.run("neural-differential-equations", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert all(np.isfinite(metric.values).all() for metric in evidence.metrics)


def test_distance_to_the_stationary_law():
    """A sample of it is as far as a sample is; a shift by s is about s times the highest density away."""
    quantiles = (np.arange(4000) + 0.5) / 4000
    x = np.interp(quantiles, wells.cumulative(), wells.GRID)
    assert wells.distance(x) < 1e-3
    assert abs(wells.distance(x + 0.01) - 0.01 * wells.density().max()) < 1e-3
    assert 0.05 < wells.gaussian() < 0.25
