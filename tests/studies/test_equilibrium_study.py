"""The study runs, its data are what they are said to be."""

import numpy as np

from kinema import studies
from kinema.studies import equilibrium_propagation_runs as runs


def test_smoke():
    evidence = studies.run("equilibrium-propagation", "smoke")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert values["error of the derivative estimate, symmetric weights, float64"] < 1e-7
    assert np.isfinite(list(values.values())).all()
    assert [figure.name for figure in evidence.figures] == ["alignment", "bias"]


def test_placed_digits():
    """Each is a digit somewhere, in noise of the stated size; digits held out are no copies of the others."""
    data = runs.placed_digits(2)
    assert data.x.shape == (2800, 144) and data.x_held.shape == (3970, 144)
    plain = np.asarray(runs.plain_digits().x).reshape(-1, 8, 8)
    for row in (0, 2799):
        picture = np.asarray(data.x[row]).reshape(12, 12)
        shifts = [(i, j) for i in range(5) for j in range(5)]
        rest = [picture - np.pad(plain[row // 2], ((i, 4 - i), (j, 4 - j))) for i, j in shifts]
        assert min(one.std() for one in rest) < 1.3 * runs.NOISE
