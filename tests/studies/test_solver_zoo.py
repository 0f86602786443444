"""The study runs, and its picture rings the best of every panel."""

import numpy as np

from kinema import studies
from kinema.studies.solver_zoo import FAMILIES, picture
from kinema.studies.solver_zoo import SIZES as SIZE
from kinema.studies.solver_zoo_problems import DIGITS, GUIDED, MIXTURE, POINTS


def test_smoke():
    evidence = studies.run("solver-zoo", "smoke")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert [name.split(" ")[0] for name in values] == ["recommended", "tuned", "error"]
    assert all(np.isfinite(list(values.values())))
    assert min(values.values()) > 0 and [figure.name for figure in evidence.figures] == ["zoo"]


def test_the_lowest_is_ringed():
    names = {family: f"{beginnings[0]} on log-snr" for family, beginnings in FAMILIES.items()}
    errors = {name: 0.1 * (1 + i) for i, name in enumerate(names.values())}
    size = SIZE["quick"]
    curves = [{(p, calls): errors for p in (MIXTURE, GUIDED, POINTS, DIGITS) for calls in size.calls}]
    drawn = picture(size, curves).image.axes[0].get_lines()
    assert len(drawn) == len(FAMILIES) + 1
    np.testing.assert_allclose(drawn[-1].get_ydata(), 0.1)
