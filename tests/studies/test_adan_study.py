"""The study runs, and what it counts is what it says."""

import numpy as np
import pytest

from kinema import studies
from kinema.studies import adan


def test_smoke():
    evidence = studies.run("adan", "smoke")
    values = {metric.name: metric for metric in evidence.metrics}
    parity = values["distance to the algorithm after 50 steps"]
    assert parity.met and parity.baseline[0] > 0.01
    assert [figure.name for figure in evidence.figures] == ["transformer"]
    assert len(evidence.tables) == 1


def test_steps_to_a_loss_and_usable_rates():
    falling = np.linspace(10, 0, 101)
    assert adan.steps_to(falling, 4.95) == 60 + adan.tasks.WINDOW - 19 + 0
    assert adan.steps_to(falling, -1.0) == 101
    assert adan.usable((0.01, 0.02, 0.04), np.array([0.3, 0.2, 0.5])) == pytest.approx(2)
    assert adan.ending(np.ones((3, 30))).tolist() == [1, 1, 1]
