"""The study runs from end to end; what it claims is measured by its larger presets."""

import math

from kinema import studies


def test_smoke():
    evidence = studies.run("score-sde", "smoke")
    assert len(evidence.figures) >= 2 and len(evidence.metrics) >= 8
    assert all(math.isfinite(value) for metric in evidence.metrics for value in metric.values)
    exact = next(metric for metric in evidence.metrics if metric.name.startswith("error of exact log-likelihood"))
    assert exact.met
