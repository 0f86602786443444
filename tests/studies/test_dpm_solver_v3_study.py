"""The study runs and compares every solver from the same starts."""

from kinema import studies
from kinema.studies.dpm_solver_v3 import OURS, PEERS


def test_smoke():
    evidence = studies.run("dpm-solver-v3", "smoke")
    assert [len(metric.values) for metric in evidence.metrics] == [1] * len(evidence.metrics)
    assert [figure.name for figure in evidence.figures] == ["mean", "square", "statistics"]
    median = {row[0]: row[1].mean for row in evidence.tables[1].rows}
    assert all(median[OURS] < 0.8 * median[name] for name in (*PEERS, "DDIM"))
