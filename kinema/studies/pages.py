"""Evidence as pages and as the table of the README. Nothing is measured here."""

import os
from collections import Counter

from kinema.report import Page
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.store import load_evidence
from kinema.studies.study import About, catalog, get
from kinema.tables import Spread, Table

_MARK = {True: "✓ met", False: "✕ missed", None: ""}


def study_page(evidence: Evidence, about: About | None = None) -> Page:
    """One study: claim, verdict, metrics, pictures, tables, and where the numbers come from."""
    about = about or get(evidence.slug).about
    page = Page(about.title, lede=about.claim)
    page.add_verdict(evidence.verdict, _why(evidence)).add_text(f"Paper: {about.paper}")
    return _add_evidence(page, evidence, heading=True)


def overview_page(folder: str | os.PathLike = "evidence", title: str = "Evidence") -> Page:
    """Every study: claim, verdict and pictures, from the evidence kept in `folder`."""
    kept = {about: load_evidence(slug, folder) for slug, about in catalog().items()}
    count = Counter(evidence.verdict for evidence in kept.values())
    parts = f"{count['reproduced']} reproduced, {count['falls short']} fall short, {count['not run']} not run"
    page = Page(title, lede=f"{len(kept)} methods: {parts}.").add_contents()
    for about, evidence in kept.items():
        page.add_heading(about.title).add_verdict(evidence.verdict, _why(evidence))
        page.add_text(f"{about.claim}\n\nPaper: {about.paper}")
        _add_evidence(page, evidence, heading=False)
    return page


def markdown_table(folder: str | os.PathLike = "evidence") -> str:
    """All studies for the README: claim, what was measured, verdict."""
    rows = []
    for slug, about in catalog().items():
        evidence = load_evidence(slug, folder, pictures=False)
        rows.append((about.title, about.claim, _headline(evidence), evidence.verdict))
    return Table("", ("method", "claim", "measured", "verdict"), rows).markdown()


def metric_table(metrics: tuple[Metric, ...]) -> Table:
    """Metrics with their targets and baselines."""
    names = sorted({metric.against for metric in metrics if metric.against})
    baseline = f"baseline ({names[0]})" if len(names) == 1 else "baseline"
    columns = ["metric", "measured", "target", baseline, "result"]
    rows = []
    for metric in metrics:
        other = "" if metric.baseline is None else metric.shown(metric.baseline)
        other += f" ({metric.against})" if other and len(names) > 1 and metric.against else ""
        rows.append([metric.name, metric.shown(), metric.demand, other, _MARK[metric.met]])
    keep = [index for index in range(5) if index < 2 or any(row[index] for row in rows)]
    seeds = max(len(metric.values) for metric in metrics)
    note = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    return Table("", [columns[i] for i in keep], [[row[i] for i in keep] for row in rows], note)


def _add_evidence(page: Page, evidence: Evidence, *, heading: bool) -> Page:
    if evidence.metrics:
        page.add_table(metric_table(tuple(evidence.metrics)))
    if heading and (evidence.animations or evidence.figures or evidence.tables):
        page.add_heading("What it looks like" if evidence.animations or evidence.figures else "Details")
    for animation in evidence.animations:
        page.add_animation(animation)
    for figure in evidence.figures:
        page.add_figure(figure)
    for table in evidence.tables:
        page.add_table(table)
    if evidence.metrics:
        page.add_settings(_origin(evidence), "How it was measured", unfolded=heading)
    return page


def _origin(evidence: Evidence) -> dict:
    return {
        **{"preset": evidence.preset, "seeds": list(evidence.seeds), "time": f"{Spread(evidence.seconds)} s"},
        **{"device": evidence.device, "date": evidence.date, "commit": evidence.commit},
        **evidence.settings,
        "versions": ", ".join(f"{name} {version}" for name, version in evidence.versions.items()),
    }


def _why(evidence: Evidence) -> str:
    small = " Smoke preset: it shows that the study runs, its sizes are too small to judge the claim."
    return evidence.why + (small if evidence.preset == "smoke" else "")


def _headline(evidence: Evidence) -> str:
    """What was missed, or else the first metric with a target."""
    judged = [metric for metric in evidence.metrics if metric.met is not None]
    return "; ".join(f"{m.name} {m.shown()} ({m.demand})" for m in evidence.missed or judged[:1])
