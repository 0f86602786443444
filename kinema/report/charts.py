"""Charts in the house style. Each returns a Matplotlib figure; `Page.add_figure` or `Picture` takes it from there.

Series are mappings from a name to numbers. Several rows of numbers are several seeds: the line is their mean, the band
reaches from the smallest to the largest. Matplotlib is imported when a chart is drawn, not before.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from kinema.errors import InputError
from kinema.report.style import LIGHT, MARKERS, SERIES_LIGHT, SERIES_MIDDLE, matplotlib_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kinema.learn import ProbeRecord

MANY_POINTS = 400  # from here on points are drawn as an image inside the SVG
LOG_TICKS = ((0.7, range(1, 10)), (1.6, (1.0, 2.0, 5.0)), (3.0, (1.0, 3.0)), (np.inf, (1.0,)))  # by decades shown


@contextmanager
def house(width: float = 4.8, height: float = 3.1, **subplots):
    """A figure of your own in the house style, in inches; `subplots` as in `Figure.subplots`.

    >>> with house(4.8, 2.0) as (figure, axes):
    ...     _ = axes.plot([0, 1], [0, 1])
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(matplotlib_settings()):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**subplots)


def log_scale(axes, *names: str) -> None:
    """A log scale along "x" or "y", or both; 0.01, 0.02, 0.05 rather than powers of ten, and enough of them.

    For after all is drawn: limits stay as they are.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name in names:
        getattr(axes, f"set_{name}scale")("log")
        axis, (low, high) = getattr(axes, f"{name}axis"), getattr(axes, f"get_{name}lim")()
        decades = np.log10(high / low)
        subs = next(subs for most, subs in LOG_TICKS if decades <= most)
        axis.set_major_locator(LogLocator(subs=list(subs), numticks=12))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-")))
        getattr(axes, f"set_{name}lim")(low, high)


def training_curve(
    curves: Mapping[str, tuple[Any, Any]], *, ylabel: str = "loss", smooth: float = 0.02, log: bool = True
) -> "Figure":
    """Loss against step: {name: (steps (n,), values (n,) or (seeds, n))}.

    A curve is shown faintly as measured and strongly as a running mean over the share `smooth` of its length.
    """
    _some(curves, "curves")
    with house() as (figure, axes):
        for index, (name, (steps, values)) in enumerate(curves.items()):
            steps, values = _rows(name, steps, values)
            window = max(1, round(smooth * values.shape[1]))
            shown = np.unique(np.linspace(0, steps.size - 1, MANY_POINTS).astype(int))  # as many as a screen shows
            middle, colour = values.mean(0), SERIES_LIGHT[index % len(SERIES_LIGHT)]
            if len(values) > 1:
                band = values[:, shown]
                axes.fill_between(steps[shown], band.min(0), band.max(0), color=colour, alpha=0.15, lw=0)
            elif window > 1:
                axes.plot(steps[shown], middle[shown], color=colour, alpha=0.3, lw=0.8)
            axes.plot(steps[shown], _running_mean(middle, window)[shown], color=colour, label=name)
        if log and all(np.min(values) > 0 for _, values in curves.values()):
            log_scale(axes, "y")
        axes.set(xlabel="step", ylabel=ylabel)
        axes.margins(x=0.01)
        _legend(axes, curves)
    return figure


def probe_courses(probes: Mapping[str, "ProbeRecord"], *, lines: int = 6) -> "Figure":
    """What probes saw against steps, a panel for each: the first `lines` of its numbers. Arrays are not drawn.

    Raises:
        InputError: no probe measured a number.
    """
    courses = {probe: {leaf: y for leaf, y in seen.values.items() if y.ndim == 1} for probe, seen in probes.items()}
    courses = {probe: dict(list(seen.items())[:lines]) for probe, seen in courses.items() if seen}
    _some(courses, "probes that measured numbers")
    with house(4.8, 1.7 * len(courses) + 0.3, nrows=len(courses), squeeze=False) as (figure, grid):
        for axes, (probe, seen) in zip(grid[:, 0], courses.items()):
            for index, (leaf, values) in enumerate(seen.items()):
                colour = SERIES_LIGHT[index % len(SERIES_LIGHT)]
                axes.plot(probes[probe].steps, values, "o-", ms=3, lw=1.2, color=colour, label=leaf.removesuffix("/."))
            if list(seen) != ["."]:
                axes.legend(fontsize="small")
            axes.set_title(probe, loc="left")
            axes.margins(x=0.01)
            if min(values.min() for values in seen.values()) > 0:
                log_scale(axes, "y")
        grid[-1, 0].set_xlabel("step")
    return figure


def error_against_nfe(
    curves: Mapping[str, tuple[Any, Any]], *, ylabel: str = "error", target: float | None = None, floor: float = 0.0
) -> "Figure":
    """Error against network evaluations, both logarithmic: {name: (nfe (n,), errors (n,) or (seeds, n))}.

    `target` draws the claim as a dashed line. Errors below `floor` are drawn at it; without one they must be positive.
    """
    _some(curves, "curves")
    with house() as (figure, axes):
        counts = set()
        for index, (name, (nfe, errors)) in enumerate(curves.items()):
            nfe, errors = _rows(name, nfe, errors)
            if errors.min() <= 0 and floor <= 0:
                raise InputError(f"{name!r} has an error of {errors.min():.3g}; a log axis needs a positive `floor`")
            errors, colour = np.maximum(errors, floor), SERIES_LIGHT[index % len(SERIES_LIGHT)]
            counts.update(nfe.tolist())
            if len(errors) > 1:
                axes.fill_between(nfe, errors.min(0), errors.max(0), color=colour, alpha=0.15, lw=0)
            axes.plot(nfe, errors.mean(0), color=colour, marker=MARKERS[index % len(MARKERS)], label=name)
        axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=ylabel)
        axes.minorticks_off()
        axes.set_xticks(_spaced(sorted(counts)))
        axes.xaxis.set_major_formatter("{x:g}")
        if target is not None:
            axes.axhline(target, color=LIGHT["soft"], lw=1.2, ls=(0, (4, 3)), zorder=0)
            place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            axes.annotate(f"target {target:g}", (1, target), (0, 3), ha="right", color=LIGHT["soft"], size=9, **place)
        log_scale(axes, "y")
        _legend(axes, curves)
    return figure


def law_bars(
    rows: Mapping[str, Mapping[str, Any]], *, ylabel: str = "law error", reference: str | None = None
) -> "Figure":
    """Bars of law errors, grouped by law: {motion: {law: one number, or one for each seed}}.

    Whiskers reach from the smallest to the largest seed; a bar too low to be seen is marked with its value. `reference`
    names a row that is drawn as a line across its group (the truth, where it is not 0).
    """
    _some(rows, "rows")
    if reference is not None and reference not in rows:
        raise InputError(f"reference must be one of {', '.join(rows)}, got {reference!r}")
    laws = list(dict.fromkeys(law for row in rows.values() for law in row))
    barred = [name for name in rows if name != reference]
    values = {
        name: {law: np.atleast_1d(np.asarray(numbers, float)).ravel() for law, numbers in row.items()}
        for name, row in rows.items()
    }
    top = max(float(np.max(numbers)) for row in values.values() for numbers in row.values())
    wide = 0.8 / max(len(barred), 1)
    with house(width=max(4.8, 0.5 + 0.26 * len(laws) * (len(barred) + 1))) as (figure, axes):
        for index, name in enumerate(barred):
            colour = SERIES_LIGHT[index % len(SERIES_LIGHT)]
            for group, law in enumerate(laws):
                if law not in values[name]:
                    continue
                numbers, x = values[name][law], group + (index - (len(barred) - 1) / 2) * wide
                axes.bar(x, numbers.mean(), wide * 0.88, color=colour, label=name if group == 0 else None)
                if len(numbers) > 1:
                    axes.vlines(x, numbers.min(), numbers.max(), color=LIGHT["ink"], lw=1.1)
                if numbers.max() < 0.01 * top:
                    label = "0" if numbers.max() < 1e-12 else f"{numbers.mean():.0e}".replace("e-0", "e-")
                    turn = {"rotation": 90} if len(label) > 1 else {}
                    axes.text(x, 0.015 * top, label, ha="center", va="bottom", size=8, color=colour, **turn)
        for group, law in enumerate(laws):
            if reference is not None and law in values[reference]:
                level = values[reference][law].mean()
                label = reference if group == 0 else None
                axes.hlines(level, group - 0.45, group + 0.45, color=LIGHT["ink"], lw=1.4, ls=(0, (3, 2)), label=label)
        axes.set_xticks(range(len(laws)), laws)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.set(ylabel=ylabel, ylim=(0, None))
        _legend(axes, rows)
    return figure


def scatter_rows(
    clouds: Mapping[str, Any], *, limits: tuple[float, float, float, float] | None = None, points: int = 2000
) -> "Figure":
    """Clouds of points side by side on the same axes: {name: (n, 2)}, or rows of them: {row: {name: (n, 2)}}.

    At most `points` of each are drawn. `limits` (left, right, bottom, top) are by default those of the first cloud,
    with room around, so that what strays is seen to stray.
    """
    _some(clouds, "clouds")
    rows = clouds if all(isinstance(row, Mapping) for row in clouds.values()) else {"": clouds}
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    arrays = {(r, c): _points(c, cloud) for r, row in rows.items() for c, cloud in row.items()}
    if limits is None:
        low, high = np.quantile(next(iter(arrays.values())), [0.002, 0.998], axis=0)
        room = 0.25 * (high - low) + 1e-9
        (left, bottom), (right, top) = low - room, high + room
        limits = (left, right, bottom, top)
    shape = {"nrows": len(rows), "ncols": len(columns), "squeeze": False, "sharex": True, "sharey": True}
    with house(max(1.62 * len(columns), 2.4), 1.78 * len(rows) + 0.1, **shape) as (figure, grid):
        for i, row in enumerate(rows):
            for j, name in enumerate(columns):
                axes = grid[i, j]
                axes.set(xlim=limits[:2], ylim=limits[2:], xticks=[], yticks=[], aspect="equal")
                axes.spines[:].set_visible(True)
                axes.spines[:].set_color(LIGHT["line"])
                if i == 0:
                    axes.set_title(name)
                if j == 0 and row:
                    axes.set_ylabel(row)
                if (row, name) in arrays:
                    cloud = arrays[row, name][:points]
                    many = len(cloud) > MANY_POINTS
                    colour = (SERIES_MIDDLE if many else SERIES_LIGHT)[j % len(SERIES_LIGHT)]
                    axes.scatter(*cloud.T, s=5, alpha=0.6, lw=0, color=colour, rasterized=many)
    return figure


def _some(series: Mapping, what: str) -> None:
    if not series:
        raise InputError(f"{what} is empty; give at least one name with its numbers")


def _rows(name: str, x, y) -> tuple[np.ndarray, np.ndarray]:
    """`(n,)` and `(seeds, n)`, finite."""
    x, y = np.asarray(x, float), np.atleast_2d(np.asarray(y, float))
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != x.size or not x.size:
        raise InputError(f"{name!r} needs shapes (n,) and (n,) or (seeds, n), got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(f"{name!r} holds values that are not finite")
    return x, y


def _points(name: str, cloud) -> np.ndarray:
    cloud = np.asarray(cloud, float)
    if cloud.ndim != 2 or cloud.shape[1] != 2 or not len(cloud):
        raise InputError(f"cloud {name!r} must have shape (n, 2), got {cloud.shape}")
    return cloud[np.isfinite(cloud).all(1)]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred, shorter at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(values.size)
    low = np.maximum(middle - window // 2, 0)
    high = np.minimum(middle + (window + 1) // 2, values.size)
    return (total[high] - total[low]) / (high - low)


def _spaced(counts: Sequence[float], apart: float = 1.25) -> list[float]:
    """Those counts that stand apart on a log axis."""
    kept: list[float] = []
    for count in counts:
        if not kept or count >= apart * kept[-1]:
            kept.append(count)
    return kept


def _legend(axes, names) -> None:
    if len(names) > 1:
        axes.figure.legend(loc="outside upper left", ncols=min(len(names), 4), columnspacing=1.4, borderpad=0)
