"""The study runs on a path from noise and on one between two sets."""

import numpy as np

from kinema import studies
from kinema.generate import PATHS
from kinema.studies import path_core


def test_smoke():
    evidence = studies.run("path-core", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert evidence.metrics[0].measured.mean < 1e-12
    assert len(evidence.tables[0].rows) == 2 and np.isfinite(evidence.metrics[1].values).all()


def test_exponential_solvers_follow_the_paths_whose_signal_rises():
    assert [name for name in PATHS if not path_core.rises(PATHS[name]())] == ["interpolant", "mirror"]
