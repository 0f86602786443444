"""Momentum in few steps of strong guidance: who diverges, where steps are stable, and what it looks like on digits."""

from typing import NamedTuple

import jax.random as jr
import numpy as np

from kinema.generate import VE, Guided, sample
from kinema.generate.alike import bind_alike
from kinema.generate.momentum_choice import MARGIN, stiffness
from kinema.generate.rows import Rows
from kinema.generate.solver import (
    Plan,
    adams,
    ancestral,
    dpmpp,
    ghvb,
    grids,
    heavy_ball,
    number_for,
    stability_radius,
    unipc,
)
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import SERIES_LIGHT
from kinema.studies import ghvb_problems as problems
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """`cells`: guidance scales and steps; `fine`: steps of the reference; `starts` a seed, `pilots` of the stiffness;
    `training`: steps, width and depth of the network that draws `drawn` digits, None for no digits."""

    cells: tuple[tuple[float, int], ...]
    fine: int
    starts: int
    pilots: int
    training: tuple[int, int, int] | None
    drawn: int


HARD, LONG = (15.0, 8), (15.0, 30)
CELLS = ((7.5, 8), (15.0, 6), HARD, (15.0, 10), LONG)
SIZES = {
    "smoke": Size((HARD,), 60, 32, 2, None, 0),
    "quick": Size(CELLS, 999, 256, 32, (1200, 256, 3), 200),
    "full": Size(CELLS, 999, 16384, 256, (10_000, 512, 4), 5000),
}
PLMS, OURS, PUBLISHED = "PLMS 4", "GHVB 3.3", "GHVB 2.5, equal steps"
SOLVERS = {
    "DDIM": lambda path, grid: ancestral(path, grid, eta=0.0),
    PLMS: lambda path, grid: adams(path, grid, variable=False),
    "PLMS 2": lambda path, grid: adams(path, grid, order=2, variable=False),
    "GHVB 3.8, equal steps": lambda path, grid: ghvb(path, grid, number=3.8, variable=False, start="euler"),
    "GHVB 3.3, equal steps": lambda path, grid: ghvb(path, grid, number=3.3, variable=False, start="euler"),
    PUBLISHED: lambda path, grid: ghvb(path, grid, number=2.5, variable=False, start="euler"),
    "GHVB 3.8": lambda path, grid: ghvb(path, grid, number=3.8),
    OURS: lambda path, grid: ghvb(path, grid, number=3.3),
    "GHVB 2.5": lambda path, grid: ghvb(path, grid, number=2.5),
    "HB 3.8": lambda path, grid: heavy_ball(path, grid, number=3.8),
    "no momentum, real steps": lambda path, grid: adams(path, grid, start="heun"),
    "DPM++ 2M": lambda path, grid: dpmpp(path, grid),
    "UniPC 3": lambda path, grid: unipc(path, grid),
}
SMALL = (PLMS, PUBLISHED, OURS, "DDIM", "DPM++ 2M")  # what a smoke run compares


class Quality(NamedTuple):
    """Against the reference: root mean square error, median over samples, share of samples that diverged."""

    error: float
    median: float
    diverged: float


@study(
    "ghvb",
    "Wizadwongsa et al., 2024, arXiv 2307.11118",
    "In 8 steps of guidance 15, where PLMS-4 diverges on more than 40 % of the samples, GHVB diverges on none and is "
    "at least 20 times as accurate; with the weights of the real steps it beats DDIM and DPM-Solver++ 2M there.",
    title="Momentum against divergence",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    found = [cells(size, jr.key(seed)) for seed in seeds]

    def of(name: str, cell: tuple[float, int], field: str) -> list[float]:
        return [getattr(one[name, cell], field) for one in found]

    errors = {name: np.array(of(name, HARD, "error")) for name in (PLMS, PUBLISHED, OURS, "DDIM", "DPM++ 2M")}
    best = np.minimum(errors["DDIM"], errors["DPM++ 2M"])
    metrics = [
        Metric("diverged, PLMS 4", of(PLMS, HARD, "diverged"), 0.4, ">="),
        Metric(f"diverged, {OURS}", of(OURS, HARD, "diverged"), 0.0, baseline=of(PLMS, HARD, "diverged"), against=PLMS),
        Metric(f"error, {PUBLISHED}", errors[PUBLISHED], 0.3, baseline=errors[PLMS], against=PLMS),
        Metric(f"error, {OURS}", errors[OURS], 0.2, baseline=errors["DPM++ 2M"], against="DPM++ 2M"),
        Metric(f"error of PLMS 4 over that of {OURS}", errors[PLMS] / errors[OURS], 20.0, ">=", unit="x"),
        Metric(f"error of {OURS} over the better of DDIM and 2M", errors[OURS] / best, 1.0, unit="x"),
    ]
    if LONG in size.cells:
        kept = np.divide(of("GHVB 3.8", LONG, "error"), of(PLMS, LONG, "error"))
        metrics.append(Metric("error at 30 steps, GHVB 3.8 over PLMS 4", kept, 1.15, unit="x"))
    figures = [regions()]
    if size.training is not None:
        digits = problems.guided_digits(size.training, size.drawn, DIGIT_SOLVERS, jr.key(seeds[0]))
        share, base = (digits[name].recognised for name in ("GHVB 2.5", PLMS))
        metrics.append(Metric("guided digits recognised, GHVB 2.5", share, baseline=base, against=PLMS))
        figures.append(problems.sheet(digits))
    return Evidence(
        metrics=metrics,
        figures=figures,
        tables=[table(size, found, "error", "Root mean square error"), *tables(size, found)],
        settings={
            "problem": "16 dimensions, 4 classes of 3 components, standard deviation 0.25; exact scores",
            "cell of the claim": "guidance 15, 8 steps, uniform in the index of a scaled-linear table",
            "reference": f"UniPC 2, {size.fine} steps",
            "diverged": "beyond 1.1 times the largest value of the reference",
            "stiffness and the number that follows": [stiff(size, jr.key(seed)) for seed in seeds],
            "digits": "none" if size.training is None else f"perceptron (steps, width, depth) {size.training}",
        },
    )


DIGIT_SOLVERS = {name: SOLVERS[name] for name in (PLMS, PUBLISHED, "DPM++ 2M", "GHVB 2.5")}


def cells(size: Size, key) -> dict[tuple[str, tuple[float, int]], Quality]:
    """Every solver in every cell, from the same starts."""
    gen, start, classes = problems.guided_mixture(size.starts, key)
    names = SOLVERS if len(size.cells) > 1 else SMALL
    found = {}
    for scale, steps in size.cells:
        guided = Guided(gen, problems.NO_CLASS, scale)

        def end(plan: Plan | Rows, guided=guided) -> np.ndarray:
            drawn = sample(guided, plan, size.starts, key=key, shape=(problems.DIM,), start=start, cond=classes)
            return np.asarray(drawn.x, np.float64)

        truth = end(unipc(gen.path, problems.uniform_grid(gen.path, size.fine), order=2))
        grid = problems.uniform_grid(gen.path, steps)
        plans = {name: SOLVERS[name](gen.path, grid) for name in names}
        for name, rows in bind_alike(plans, guided).items():
            x = end(rows)
            error = ((x - truth) ** 2).mean(1) ** 0.5
            far = np.abs(x).max(1) > 1.1 * np.abs(truth).max()
            quality = Quality(float((error**2).mean() ** 0.5), float(np.median(error)), float(far.mean()))
            found[name, (scale, steps)] = quality
    return found


def stiff(size: Size, key) -> list[float]:
    """The stiffness of the hardest step in the cell of the claim, and the GHVB number that is stable there."""
    gen, _, classes = problems.guided_mixture(size.pilots, key)
    grid = problems.uniform_grid(gen.path, HARD[1])
    guided = Guided(gen, problems.NO_CLASS, HARD[0])
    found = stiffness(guided, grid, size.pilots, key=key, shape=(problems.DIM,), cond=classes).max()
    return [round(float(found), 3), round(number_for(MARGIN * float(found)), 3)]


def tables(size: Size, found) -> list[Table]:
    return [
        table(size, found, "median", "Median error"),
        table(size, found, "diverged", "Share of samples that diverged"),
    ]


def table(size: Size, found, field: str, title: str) -> Table:
    names = list(dict.fromkeys(name for name, _ in found[0]))
    rows = [
        [name, *(Spread.of([getattr(one[name, cell], field) for one in found]) for cell in size.cells)]
        for name in names
    ]
    return Table(title, ["solver", *(f"{scale:g}, {steps} steps" for scale, steps in size.cells)], rows)


STABLE = {
    "PLMS 4": lambda path, grid: adams(path, grid, variable=False),
    "HB 3.8": lambda path, grid: heavy_ball(path, grid, number=3.8),
    "GHVB 3.8": lambda path, grid: ghvb(path, grid, number=3.8),
    "GHVB 3.3": lambda path, grid: ghvb(path, grid, number=3.3),
    "GHVB 2.5": lambda path, grid: ghvb(path, grid, number=2.5),
    "GHVB 1.5": lambda path, grid: ghvb(path, grid, number=1.5),
}


def regions() -> Picture:
    """The regions of stability of plans, read off their rows at equal steps."""
    path = VE()
    grid = grids.from_noise_ratios(path, np.arange(41, 1, -1.0))
    real, imaginary = np.linspace(-1.8, 0.4, 111), np.linspace(-1.3, 1.3, 131)
    z = real + 1j * imaginary[:, None]
    with house(6.4, 3.9, nrows=2, ncols=3, sharex=True, sharey=True) as (figure, axes):
        for index, (panel, (name, build)) in enumerate(zip(axes.flat, STABLE.items())):
            radius = stability_radius(build(path, grid), grid.steps - 1, z)
            colour = SERIES_LIGHT[index % len(SERIES_LIGHT)]
            panel.contourf(real, imaginary, radius, levels=[0, 1], colors=[colour], alpha=0.3)
            panel.contour(real, imaginary, radius, levels=[1], colors=[colour])
            panel.set_title(name)
            panel.set(aspect="equal")
        figure.supxlabel("real part of eigenvalue times step")
    return Picture(
        "regions",
        figure,
        "Regions of the complex plane where steps of PLMS 4, HB 3.8 and GHVB 3.8, 3.3, 2.5 and 1.5 are stable",
        "Stable where shaded: |eigenvalues| of the plan's own rows at most 1. Smaller numbers reach further.",
    )
