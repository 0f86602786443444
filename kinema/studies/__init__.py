"""Runnable claims and their evidence. Listing them imports neither a study nor JAX."""

from typing import TYPE_CHECKING

from kinema._lazy import attach
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.store import load_evidence, save_evidence
from kinema.studies.study import PRESETS, About, Study, catalog, get, run, study

if TYPE_CHECKING:
    from kinema.studies.pages import markdown_table, metric_table, overview_page, study_page

__all__ = [
    "PRESETS",
    "About",
    "Evidence",
    "Metric",
    "Study",
    "catalog",
    "get",
    "load_evidence",
    "markdown_table",
    "metric_table",
    "overview_page",
    "run",
    "save_evidence",
    "study",
    "study_page",
]

__getattr__, _, _ = attach(__name__, {"pages": ["markdown_table", "metric_table", "overview_page", "study_page"]})


def __dir__():
    return sorted(__all__)
