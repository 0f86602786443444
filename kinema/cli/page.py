"""What `verify` found, as a page."""

import numpy as np

from kinema.cli.findings import Findings, motion_of
from kinema.motion.readers import Dataset
from kinema.report import Page
from kinema.report.charts import house, law_bars


def draw(found: Findings) -> Page:
    """Pictures of the samples, tables, and where they come from."""
    name, data = next(iter(found.samples.items()))
    law = f" by the law of {found.world.name}" if found.world is not None else ""
    page = Page(f"Verified: {name}", lede=f"{len(data)} samples judged{law}.")
    page.add_heading("The samples")
    motions = {title: motion_of(one) for title, one in found.samples.items()}
    if all(_flat_balls(one) for one in found.samples.values()):
        page.add_animation(motions, alt=f"Balls moving: {' beside '.join(motions)}.")
    else:
        for title, one in found.samples.items():
            picture = _pictures(one) if data.ts is None else _lines(one)
            page.add_figure(picture, alt=f"Some samples of {title}", caption=title)
    if found.errors:
        page.add_heading("Does it obey the law?")
        bars = {title: errors.means() for title, errors in found.errors.items()}
        skip = ("speed", "hits", "pairs")
        bars = {title: {law: v for law, v in row.items() if law not in skip} for title, row in bars.items()}
        page.add_figure(law_bars(bars), alt="Law errors, one group of bars a law")
    if found.distances and not found.errors:
        page.add_heading("Is it distributed alike?")
    for table in found.tables:
        page.add_table(table)
    page.add_heading("Where it comes from")
    for title, one in found.samples.items():
        page.add_settings({"samples": len(one), **dict(one.meta)}, title=title, unfolded=True)
    return page


def _flat_balls(data: Dataset) -> bool:
    """Positions in the plane, which the animation can show."""
    x = data.arrays.get("x") if isinstance(data.arrays, dict) else None
    return data.ts is not None and isinstance(x, np.ndarray) and x.ndim == 4 and x.shape[-1] == 2


def _first_array(data: Dataset) -> np.ndarray:
    return np.asarray(next(iter(data.arrays.values())) if isinstance(data.arrays, dict) else data.arrays)


def _lines(data: Dataset, samples: int = 4, lines: int = 8):
    """The first numbers of some samples against time."""
    values = _first_array(data)[:samples]
    values = values.reshape(*values.shape[:2], -1)[..., :lines]
    with house() as (figure, axes):
        for sample in values:
            axes.plot(data.ts, sample, linewidth=1)
        axes.set_xlabel("time")
    return figure


def _pictures(data: Dataset, across: int = 12, down: int = 4):
    """A sheet of the first pictures, or the first two numbers of samples that are none."""
    values = _first_array(data)
    with house() as (figure, axes):
        if values.ndim < 3:
            flat = values.reshape(len(values), -1)
            axes.plot(flat[:2000, 0], flat[:2000, -1], ".", markersize=2)
        else:
            values = values[: across * down]
            gray = values if values.ndim == 3 else values.mean(-1 if values.shape[-1] <= 4 else 1)
            blank = np.full((across * down - len(gray), *gray.shape[1:]), gray.min())
            grid = np.concatenate([gray, blank]).reshape(down, across, *gray.shape[1:])
            axes.imshow(np.concatenate(np.concatenate(grid, 1), 1), cmap="gray")
            axes.set_axis_off()
    return figure
