"""The study runs, and its NumPy peer makes the same steps."""

import numpy as np

from kinema import studies
from kinema.studies import matrix_sensing


def test_smoke():
    evidence = studies.run("matrix-sensing", "smoke")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert abs(values["slope of the symmetric error, 3 columns"] + 1) < 0.1
    assert abs(values["power of α in the rate"] - 2) < 0.2
    assert values["symmetric error at the end, no surplus"] < 1e-12
    assert values["difference from NumPy's factors"] < 1e-12
    assert [figure.name for figure in evidence.figures] == ["curves"]


def test_steps_to_the_solution():
    assert matrix_sensing.reached(np.array([0, 5, 10]), np.array([1.0, 1e-10, 1e-12])) == 5
    assert matrix_sensing.reached(np.array([0, 5]), np.array([1.0, 0.1])) == float("inf")
