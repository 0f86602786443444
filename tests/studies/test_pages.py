import numpy as np
import pytest

from kinema import studies
from kinema.report import Picture, animate
from kinema.report.charts import house
from kinema.studies import Evidence, Metric, save_evidence
from kinema.studies.study import _STUDIES, About, Study
from kinema.tables import Table


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two studies, one with evidence."""
    for name in list(_STUDIES):
        monkeypatch.delitem(_STUDIES, name)
    for slug in ("ghvb", "never-run"):
        about = About(slug, "Paper, arXiv 2307.00910", f"Claim of <{slug}>.", slug.upper(), "generate", "here")
        monkeypatch.setitem(_STUDIES, slug, Study(about, lambda preset, seed: Evidence(), 3))
    monkeypatch.setattr("kinema.studies.pages.catalog", lambda: {slug: one.about for slug, one in _STUDIES.items()})
    with house() as (figure, axes):
        axes.plot([1, 2])
    evidence = Evidence(
        metrics=[
            Metric("error | at 12", [0.11, 0.12, 0.13], 0.1, baseline=[0.3, 0.31, 0.33], against="Euler"),
            Metric("speed-up", [1.8], 1.5, ">=", unit="x"),
            Metric("only shown", [3.0]),
        ],
        figures=[Picture("error", figure, alt="error against evaluations", caption="Error.")],
        tables=[Table("Details", ("a", "b"), [("x", 1.0)])],
        animations=[animate({"true": np.zeros((4, 2, 2))}, alt="two balls", name="balls")],
        settings={"width": 64},
        **{"slug": "ghvb", "preset": "quick", "seeds": (0, 1, 2), "versions": {"jax": "0.10.1"}},
        **{"device": "CPU, 2 cores", "date": "2025-01-01", "commit": "abc123", "seconds": 61.3},
    )
    save_evidence(evidence, tmp_path)
    return tmp_path


def test_a_page_for_a_study(two):
    text = studies.study_page(studies.load_evidence("ghvb", two)).html()
    assert "<h1>GHVB</h1>" in text and "Claim of &lt;ghvb&gt;." in text and "arxiv.org/abs/2307.00910" in text
    assert '<span class="badge falls-short">falls short</span>' in text
    assert "error | at 12 is 0.12, target ≤ 0.1. 1 of 2 targets are met." in text
    assert "baseline (Euler)" in text and "✕ missed" in text and "✓ met" in text and "1.8 x" in text
    assert all(word in text for word in ("abc123", "CPU, 2 cores", "jax 0.10.1", "61.3 s", "<dt>width</dt>"))
    assert text.count("<img") == 1 and 'class="player' in text
    assert "too small to judge" not in text


def test_smoke_says_that_it_is_too_small(two):
    about = _STUDIES["ghvb"].about
    assert "too small to judge" in studies.study_page(Evidence([Metric("a", 1.0, 2.0)], preset="smoke"), about).html()


def test_one_page_for_all(two):
    text = studies.overview_page(two).html()
    assert "2 methods: 0 reproduced, 1 fall short, 1 not run." in text
    assert '<li><a href="#ghvb">GHVB</a><span class="badge falls-short">' in text
    assert '<li><a href="#never-run">NEVER-RUN</a><span class="badge not-run">' in text


def test_the_table_of_the_readme(two):
    lines = studies.markdown_table(two).splitlines()
    assert lines[0] == "| method | claim | measured | verdict |"
    assert lines[2] == "| GHVB | Claim of &lt;ghvb&gt;. | error \\| at 12 0.120 ± 0.010 (≤ 0.1) | falls short |"
    assert lines[3].endswith("| not run |")


def test_columns_that_say_nothing_are_left_out():
    table = studies.metric_table((Metric("a", 1.0, 2.0),))
    assert table.columns == ("metric", "measured", "target", "result") and table.note == "One seed."
