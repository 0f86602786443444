"""A run of learning as a page: its losses, its metrics, and what probes saw."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.learn import History
from kinema.report.charts import probe_courses, training_curve
from kinema.report.page import Page


def learning_page(history: History, *, title: str = "A run", settings: Mapping[str, Any] | None = None) -> Page:
    """The page of a history: the training curve, what probes saw, and every other metric of one number a step.

    >>> from kinema.learn import ProbeRecord
    >>> seen = {"held out": ProbeRecord(np.array([0, 50, 100]), {"loss": np.array([3.0, 1.5, 1.2])})}
    >>> page = learning_page(History({"loss": np.linspace(3, 1, 100)}, seen), title="Two balls")
    >>> "What probes saw" in page.html()
    True

    Raises:
        InputError: a history without a step.
    """
    if not len(history):
        raise InputError("history must have at least one step, got none")
    page = Page(title, lede=f"{len(history):,} steps, last loss {history.loss[-50:].mean():.4g}.")
    page.add_heading("Loss").add_figure(_curve("loss", history.loss), alt="Loss against steps")
    if any(values.ndim == 1 for record in history.probes.values() for values in record.values.values()):
        page.add_heading("What probes saw")
        page.add_figure(probe_courses(history.probes), alt=f"{', '.join(history.probes)} against steps")
    for name, values in history.metrics.items():
        if name != "loss" and values.ndim == 1 and np.isfinite(values).any():
            page.add_heading(name).add_figure(_curve(name, values), alt=f"{name} against steps")
    if settings:
        page.add_heading("How it was made").add_settings(settings, unfolded=True)
    return page


def _curve(name: str, values: np.ndarray):
    steps, fine = np.arange(1, len(values) + 1), np.isfinite(values)
    return training_curve({name: (steps[fine], values[fine])}, ylabel=name)
