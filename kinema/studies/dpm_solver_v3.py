"""DPM-Solver-v3 on digits: statistics of one's own generator, and what they save at few evaluations."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.generate import VE, estimate_statistics, sample
from kinema.generate.generator import AbstractGenerator
from kinema.generate.rows import Rows, bind
from kinema.generate.solver import Grid, Plan, ancestral, dpm_solver_v3, dpmpp, grids, unipc
from kinema.generate.solver.model_statistics import ModelStatistics
from kinema.report.charts import error_against_nfe, house
from kinema.report.picture import Picture
from kinema.studies.dpm_solver_v3_digits import PIXELS, SPREAD, Blurred, perceptron, scaled_digits
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.plans_by_calls import bind_by_calls
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """`instances`: sets of digits a seed, whose errors are pooled; `n`, `k`: of the statistics; `fine`: steps of the
    converged solution; `training`: steps, width, depth of a network that learns the digits, None for none."""

    calls: tuple[int, ...]
    instances: int
    digits: int
    starts: int
    n: int
    k: int
    fine: int
    training: tuple[int, int, int] | None


FEW = (5, 6, 8)
SIZES = {
    "smoke": Size((5,), 1, 10, 16, 20, 32, 20, None),
    "quick": Size((*FEW, 10, 15, 20), 4, 100, 256, 120, 1024, 400, (1500, 256, 3)),
    "full": Size((*FEW, 10, 15, 20), 4, 100, 4096, 240, 4096, 4800, (20_000, 512, 4)),
}
STD = 0.1
PATH = VE(sigma_min=0.02, sigma_max=80.0)
LOW, HIGH = -np.log(PATH.sigma_max), -np.log(PATH.sigma_min)
OURS, FIRST, SCALAR = "DPM-Solver-v3", "DPM-Solver-v3, order 1", "DPM-Solver-v3, one number for all pixels"
PEERS = ("DPM++ 3M", "DPM++ 3M, lower at the end", "UniPC 3, bh1", "UniPC 3, bh2")


class Errors(NamedTuple):
    """Distances to the converged solution, each the root of its mean square over pixels, at one number of calls: their
    mean over starts, their median, and the root of their mean square."""

    mean: float
    median: float
    square: float

    @classmethod
    def of(cls, apart: np.ndarray) -> "Errors":
        return cls(float(apart.mean()), float(np.median(apart)), float((apart**2).mean() ** 0.5))


@study(
    "dpm-solver-v3",
    "Zheng et al., 2023, arXiv 2310.13268",
    "With statistics of the user's own generator DPM-Solver-v3 is at 5, 6 and 8 evaluations at least 15 % nearer to "
    "the converged solution than the better of DPM-Solver++ 3M and UniPC-3; by 15 the gain is gone.",
    title="Solvers fitted to the model",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    pixels = scaled_digits()
    found, known = [], Known.of(Blurred(path=PATH, points=jnp.asarray(pixels), blur=STD), size)
    for seed in seeds:
        apart = []
        for key in jr.split(jr.key(seed), size.instances):
            key_digits, key_statistics, key_start = jr.split(key, 3)
            rows = jr.permutation(key_digits, len(pixels))[: size.digits]
            gen = Blurred(path=PATH, points=jnp.asarray(pixels)[rows], blur=STD)
            statistics = estimate(gen, gen.draws(4 * size.k, key_digits), size, key_statistics)
            apart.append(compare(gen, known, statistics, size, key_start))
        found.append({at: Errors.of(np.concatenate([one[at] for one in apart])) for at in apart[0]})
    figures = [error_picture(size, found, *words) for words in CAPTIONS]
    figures.append(statistics_picture(statistics["full"]))
    tables = [error_table(size, found, *title) for title in TITLES]
    if size.training is not None:
        alone = trained(size, size.training, pixels, jr.key(seeds[0]))
        learnt = [{at: Errors.of(apart) for at, apart in alone.items()}]
        tables.append(error_table(size, learnt, "mean", "Mean error of a trained network's solution, one seed"))
    few = [calls for calls in size.calls if calls in FEW]
    metrics = [over_peers(found, calls, "mean", "mean error", 0.85) for calls in few]
    metrics += [over_peers(found, calls, "square", "root mean square error", 0.85) for calls in few]
    metrics += [
        Metric(
            f"order 1 over DDIM, root mean square error, {calls} calls",
            [one[FIRST, calls].square / one["DDIM", calls].square for one in found],
            0.85,
            unit="x",
        )
        for calls in few
    ]
    metrics += [
        over_peers(found, calls, "square", "root mean square error") for calls in size.calls if calls not in FEW
    ]
    if size.training is not None:
        metrics += [over_peers(learnt, calls, "mean", "trained network: mean error", 0.85) for calls in few]
    return Evidence(
        metrics=metrics,
        figures=figures,
        tables=tables,
        settings={
            "problem": f"{size.digits} random digits of deviation {SPREAD}, each blurred by {STD}; exact scores; VE",
            "sets of digits a seed, pooled": size.instances,
            "starts of each": size.starts,
            "grid": "uniform in log-SNR, 80 to 0.02",
            "statistics": f"{size.n + 1} log-SNRs, {size.k} points, of each pixel",
            "converged": f"UniPC 2, {size.fine} steps",
            "network": "none" if size.training is None else f"perceptron (steps, width, depth) {size.training}",
        },
    )


def estimate(gen: AbstractGenerator, data, size: Size, key) -> dict[str, ModelStatistics]:
    """Statistics of each pixel and, but for a smoke run, of all together; over the whole path."""
    options = {"low": LOW, "high": HIGH, "n": size.n, "key": key}
    found = {"full": estimate_statistics(gen, data, k=size.k, **options)}
    if size.training is not None:
        found["scalar"] = estimate_statistics(gen, data, k=size.k, shape="scalar", **options)
    return found


def uniform(calls: int) -> Grid:
    return grids.log_snr(PATH, calls, low=LOW, high=HIGH, clean=False)


def published(grid: Grid) -> dict[str, Plan]:
    """Solvers that know nothing of the model."""
    return {
        "DDIM": ancestral(PATH, grid, eta=0.0),
        PEERS[0]: dpmpp(PATH, grid, order=3),
        PEERS[1]: dpmpp(PATH, grid, order=3, lower_final=True),
        PEERS[2]: unipc(PATH, grid, variant="bh1"),
        PEERS[3]: unipc(PATH, grid),
    }


def fitted(grid: Grid, statistics: dict[str, ModelStatistics]) -> dict[str, Plan]:
    """Solvers of the model's own statistics."""
    found = {FIRST: dpm_solver_v3(PATH, grid, statistics=statistics["full"], order=1, corrector="none")}
    for name, shape in ((OURS, "full"), (SCALAR, "scalar")):
        if shape in statistics:
            found[name] = dpm_solver_v3(PATH, grid, statistics=statistics[shape])
    return found


class Known(NamedTuple):
    """What needs no statistics, for all generators of one prediction: the converged solution and the peers, by name
    and number of calls."""

    converged: Rows
    peers: dict[tuple[str, int], Rows]

    @classmethod
    def of(cls, gen: AbstractGenerator, size: Size) -> "Known":
        plans = {(name, calls): plan for calls in size.calls for name, plan in published(uniform(calls)).items()}
        return cls(bind(unipc(PATH, uniform(size.fine), order=2), gen), bind_by_calls(plans, gen))


def compare(gen: AbstractGenerator, known: Known, statistics, size: Size, key) -> dict[tuple[str, int], np.ndarray]:
    """Distances to the converged solution of every solver at every number of calls, from the same starts."""
    start = PATH.sigma_max * jr.normal(key, (size.starts, PIXELS))

    def end(rows: Rows) -> np.ndarray:
        return np.asarray(sample(gen, rows, size.starts, key=key, shape=(PIXELS,), start=start).x)

    plans = {(name, calls): plan for calls in size.calls for name, plan in fitted(uniform(calls), statistics).items()}
    truth = end(known.converged)
    return {
        at: ((end(rows) - truth) ** 2).mean(1) ** 0.5 for at, rows in (known.peers | bind_by_calls(plans, gen)).items()
    }


def trained(size: Size, training: tuple[int, int, int], pixels: np.ndarray, key) -> dict[tuple[str, int], np.ndarray]:
    """The same for a perceptron that has learnt the digits, with its own statistics."""
    key_net, key_fit, key_statistics, key_start = jr.split(key, 4)
    gen = perceptron(PATH, "residual", training, pixels, key_net, key_fit)
    smaller = size._replace(n=size.n // 2, k=size.k // 2)
    return compare(gen, Known.of(gen, size), estimate(gen, pixels, smaller, key_statistics), size, key_start)


def over_peers(found, calls: int, field: str, what: str, target: float | None = None) -> Metric:
    """Our error over that of the best peer of each seed."""
    ours = [getattr(one[OURS, calls], field) for one in found]
    best = [min(getattr(one[name, calls], field) for name in PEERS) for one in found]
    ratio = np.divide(ours, best)
    return Metric(f"{what} over the best of 3M and UniPC-3, {calls} calls", ratio, target, unit="x")


TITLES = (
    ("mean", "Mean over starts of the error"),
    ("median", "Median of the error"),
    ("square", "Root mean square error, ruled by the starts that end on another digit"),
)


CAPTIONS = (
    ("mean", "Distance to the converged solution, mean over starts. v3 leads at few evaluations."),
    ("square", "Its root mean square, ruled by the few starts that end on another digit: by 15 evaluations no gain."),
)


def error_table(size: Size, found: Sequence, field: str, title: str) -> Table:
    names = list(dict.fromkeys(name for name, _ in found[0]))
    rows = [
        [name, *(Spread.of([getattr(one[name, calls], field) for one in found]) for calls in size.calls)]
        for name in names
    ]
    return Table(title, ["solver", *(f"{calls} calls" for calls in size.calls)], rows)


def error_picture(size: Size, found: Sequence, field: str, caption: str) -> Picture:
    """Our errors and those of the best peer at every number of calls."""

    def rows(*names: str) -> tuple[Sequence[int], np.ndarray]:
        best = [[min(getattr(one[n, calls], field) for n in names) for calls in size.calls] for one in found]
        return size.calls, np.array(best)

    curves = {"DDIM": rows("DDIM"), "v3, order 1": rows(FIRST), "3M or UniPC-3": rows(*PEERS), "v3": rows(OURS)}
    words = {"mean": "mean error", "square": "root mean square error"}[field]
    return Picture(
        field,
        error_against_nfe(curves, ylabel=words),
        f"The {words} against network evaluations of DDIM, of the better of 3M and UniPC-3, and of DPM-Solver-v3",
        caption,
    )


def statistics_picture(statistics: ModelStatistics) -> Picture:
    """l, s and b of every pixel against log-SNR."""
    with house(6.4, 2.2, ncols=3) as (figure, axes):
        for panel, name in zip(axes, ("linear", "scaling", "bias")):
            values = getattr(statistics, name)
            middle = np.median(values, 1)
            low, high = np.quantile(values, [0.05, 0.95], axis=1)
            panel.fill_between(statistics.lam, low, high, alpha=0.25, lw=0)
            panel.plot(statistics.lam, middle)
            panel.set_title(name)
        figure.supxlabel("log-SNR")
    return Picture(
        "statistics",
        figure,
        "The statistics l, s and b against log-SNR; l falls from 1 to 0 as the digits become clear",
        "Median over pixels, and nine tenths of them.",
    )
