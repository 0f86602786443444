"""The study runs, and its exact case has no gap."""

import numpy as np

from kinema import studies
from kinema.studies import ode_sde_gap


def test_smoke():
    evidence = studies.run("ode-sde-gap", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert np.isfinite([metric.measured.mean for metric in evidence.metrics]).all()
    assert [one.name for one in evidence.figures] == ["weights", "densities"]


def test_the_data_have_the_deviation_that_the_generator_is_told():
    x = np.asarray(ode_sde_gap.CENTRES)
    assert np.isclose(ode_sde_gap.DEVIATION**2, (x**2).mean() + 0.2 * 0.65**2)
