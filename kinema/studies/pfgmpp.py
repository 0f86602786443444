"""PFGM++: how many extra dimensions make a generator forgive errors, and what they cost."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema.generate import MixturePosterior, PoissonFlow, log_prob, solve_adaptive
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.pfgmpp_digits import ExactDenoiser, draw, fit, halves, rounded, rounding_error
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify import energy_distance

INF = float("inf")
LEVEL = 0.3  # the noise at which rounded networks are compared with their originals
STEPS = 18  # of the published grid: 35 calls


class Size(NamedTuple):
    """How much a preset does. `points`: digits known; `exact`, `learnt`: the D of each part; `few`: step counts without
    disturbance; `width`, `depth`, `training`: the networks."""

    points: int
    samples: int
    exact: tuple[float, ...]
    disturbances: tuple[float, ...]
    few: tuple[int, ...]
    learnt: tuple[float, ...]
    bits: tuple[int, ...]
    width: int
    depth: int
    training: int


KERNELS = (8.0, 64.0, 512.0, 4096.0, INF)
LEARNT = (64.0, 512.0, INF)
DISTURBANCES = (0.0, 0.2, 0.3, 0.5)
SIZES = {
    "smoke": Size(60, 60, (8.0, INF), (0.0, 0.5), (STEPS,), (64.0, INF), (4,), 8, 1, 2),
    "quick": Size(900, 900, KERNELS, DISTURBANCES, (4, 6), LEARNT, (6, 5, 4), 256, 3, 1000),
    "full": Size(900, 9000, KERNELS, DISTURBANCES, (4, 6, 10), LEARNT, (6, 5, 4), 256, 3, 20000),
}
HEAVIEST = KERNELS[0]


@study(
    "pfgmpp",
    "Xu et al., 2023, arXiv 2302.04265",
    "Heavy-tailed noise forgives errors: with half a noise level of disturbance before every step, digits of D = 8 "
    "stay three times nearer to the data than those of diffusion, and learnt models lose less to disturbance and to "
    "rounded weights; at very few steps small D is worse.",
    title="PFGM++",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    exact = [exact_part(size, seed) for seed in seeds]
    learnt = [learnt_part(size, seed) for seed in seeds]
    worst, few, coarse = size.disturbances[-1], size.few[0], size.bits[-1]
    return Evidence(
        metrics=[
            Metric(
                f"energy distance at disturbance {worst:g}, D = {HEAVIEST:g} over D = inf",
                [one.apart[HEAVIEST, worst] / one.apart[INF, worst] for one in exact],
                1 / 3,
            ),
            Metric("its least increase from one D to the next, mean of seeds", least_increase(size, exact), 0.0, ">="),
            *(
                Metric(f"rise by disturbance {worst:g}, learnt, D = {D:g} over D = inf", ratios(learnt, D, worst), 1.0)
                for D in size.learnt[:-1]
            ),
            *(
                Metric(
                    f"rise by weights of {coarse} bits, D = {D:g} over D = inf",
                    ratios(learnt, D, f"{coarse} bits"),
                    1.0,
                )
                for D in size.learnt[:-1]
            ),
            Metric(
                f"change of the denoiser by weights of {coarse} bits at sigma = {LEVEL:g}, {label(size.learnt[0])}",
                [one.changes[size.learnt[0]] for one in learnt],
                baseline=[one.changes[INF] for one in learnt],
                unit="sigma",
                against="D = inf",
            ),
            Metric(
                f"energy distance of {few} steps undisturbed, D = {HEAVIEST:g} over D = inf",
                [one.apart[HEAVIEST, f"{few} steps"] / one.apart[INF, f"{few} steps"] for one in exact],
                1.0,
                ">=",
            ),
            Metric("error of the log-likelihood", [likelihood_error(seed) for seed in seeds], 1e-6, unit="nats"),
        ],
        figures=[curves(size, exact, learnt), pictures(size, exact[0])],
        tables=[
            table("Energy distance to held-out digits, exact denoiser", size.exact, exact),
            table("Energy distance to held-out digits, learnt", size.learnt, learnt),
        ],
        settings={
            "data": f"{size.points} digits of scikit-learn and as many others to judge by, another half for every seed",
            "sampling": f"Heun, {STEPS} steps from 80 to 0.002, rho 7, {size.samples} samples",
            "disturbance": "a sigma n added to the state before every step, n standard normal",
            "networks": f"perceptron {size.width} x {size.depth}, {size.training} steps, batch 64",
            "rounding": "every weight matrix to 2^bits - 1 equal levels up to its largest entry",
            "distance between the halves": [one.floor for one in exact],
        },
    )


class Measured(NamedTuple):
    """Energy distances by (D, disturbance or "4 bits" or "4 steps"), that between the halves of the data, samples at
    the worst disturbance by D, and by D what the coarsest rounding changes in a denoiser, in units of sigma."""

    apart: dict
    floor: float
    samples: dict
    changes: dict


def exact_part(size: Size, seed: int) -> Measured:
    """What the denoiser that knows all points makes of a disturbance, and of few steps without one."""
    points, others = halves(seed, size.points)
    key, apart, samples = jr.key(seed), {}, {}
    for D in size.exact:
        gen = ExactDenoiser(PoissonFlow(D=D), points=points)
        for amount in size.disturbances:
            samples[D] = draw(gen, STEPS, amount, size.samples, key)
            apart[D, amount] = distance(samples[D], others)
        for steps in size.few:
            apart[D, f"{steps} steps"] = distance(draw(gen, steps, 0.0, size.samples, key), others)
    return Measured(apart, distance(points, others), samples, {})


def learnt_part(size: Size, seed: int) -> Measured:
    """The same with networks of equal training, and with their weights rounded."""
    points, others = halves(seed, size.points)
    key_fit, key_draw, key_noise = jr.split(jr.key(seed), 3)
    apart, samples, changes = {}, {}, {}
    for D in size.learnt:
        gen = fit(D, points, (size.width, size.depth), size.training, key_fit)
        for amount in size.disturbances:
            samples[D] = draw(gen, STEPS, amount, size.samples, key_draw)
            apart[D, amount] = distance(samples[D], others)
        for bits in size.bits:
            apart[D, f"{bits} bits"] = distance(draw(rounded(gen, bits), STEPS, 0.0, size.samples, key_draw), others)
        changes[D] = float(rounding_error(gen, rounded(gen, size.bits[-1]), others, LEVEL, key_noise))
    return Measured(apart, distance(points, others), samples, changes)


def distance(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> float:
    return float(energy_distance(x, y))


def ratios(measured: list[Measured], D: float, how) -> list[float]:
    """How far the distance rises at D, over how far it does at D = inf."""
    return [(one.apart[D, how] - one.apart[D, 0.0]) / (one.apart[INF, how] - one.apart[INF, 0.0]) for one in measured]


def least_increase(size: Size, exact: list[Measured]) -> float:
    """The smallest difference, from one D to the next, of the mean distance at the worst disturbance."""
    mean = np.mean([[one.apart[D, size.disturbances[-1]] for D in size.exact] for one in exact], 0)
    return float(np.diff(mean).min())


def likelihood_error(seed: int) -> float:
    """Error of the flow's log density of three points in the plane, D = 8, nats."""
    with jax.enable_x64(True):
        key_points, key_x = jr.split(jr.key(seed))
        gen = MixturePosterior(PoissonFlow(D=HEAVIEST, sigma_min=0.3), jr.normal(key_points, (3, 2)))
        return float(_likelihood_error(gen, jr.normal(key_x, (2,))))


@eqx.filter_jit
def _likelihood_error(gen: MixturePosterior, x: Float[Array, " d"]) -> Float[Array, ""]:
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    start = solve_adaptive(gen, x, span=(1.0, 0.0), **tolerance).x
    # `log_prob` takes the source for one Student-t law; the points are seen through it
    source = gen.log_prob(0.0, start) - gen.path.source_log_prob(start)
    return jnp.abs(log_prob(gen, x, **tolerance) + source - gen.log_prob(1.0, x))


def label(D: float) -> str:
    return f"D = {D:g}"


def table(title: str, kernels: tuple[float, ...], measured: list[Measured]) -> Table:
    columns = list(dict.fromkeys(how for _, how in measured[0].apart))
    names = [how if isinstance(how, str) else f"disturbance {how:g}" for how in columns]
    rows = [[label(D), *(Spread.of([one.apart[D, how] for one in measured]) for how in columns)] for D in kernels]
    return Table(title, ["", *names], rows)


def curves(size: Size, exact: list[Measured], learnt: list[Measured]) -> Picture:
    with house(7.4, 3.2, ncols=3) as (figure, grid):
        for axes, title, kernels, measured, hows in (
            (grid[0], "exact, disturbed", size.exact, exact, size.disturbances),
            (grid[1], "learnt, disturbed", size.learnt, learnt, size.disturbances),
            (grid[2], "learnt, rounded", size.learnt, learnt, [0.0, *(f"{bits} bits" for bits in size.bits)]),
        ):
            for D in kernels:
                values = np.array([[one.apart[D, how] for how in hows] for one in measured])
                places = np.arange(len(hows)) if axes is grid[2] else hows
                colour = f"C{KERNELS.index(D)}"
                axes.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
                axes.plot(places, values.mean(0), "o-", color=colour, label=label(D), ms=3)
            axes.set(title=title, ylim=(0, None))
        grid[2].set_xticks(range(len(size.bits) + 1), ["32", *map(str, size.bits)])
        grid[0].set(xlabel="disturbance / sigma", ylabel="energy distance")
        grid[1].set(xlabel="disturbance / sigma")
        grid[2].set(xlabel="bits of a weight")
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(names))
    return Picture(
        "robustness",
        figure,
        "Energy distance to held-out digits against disturbance and weight bits, one line for each D",
        "Undisturbed all D are alike; disturbed, fewer extra dimensions stay nearer to the data.",
    )


def pictures(size: Size, exact: Measured) -> Picture:
    """Samples of the smallest D and of diffusion, side by side."""
    shown = {D: np.asarray(exact.samples[D])[:48].reshape(6, 8, 8, 8) for D in (HEAVIEST, INF)}
    low, high = min(x.min() for x in shown.values()), max(x.max() for x in shown.values())
    with house(4.8, 2.1, ncols=2) as (figure, grid):
        for axes, (D, x) in zip(grid, shown.items()):
            apart = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=low)
            axes.imshow(apart.transpose(0, 2, 1, 3).reshape(60, 80), cmap="gray_r", vmin=low, vmax=high)
            axes.set_title(label(D))
            axes.set_axis_off()
    return Picture(
        "disturbed",
        figure,
        "Digits generated under disturbance with 8 extra dimensions and with infinitely many, side by side",
        f"Exact denoiser, {size.disturbances[-1]:g} sigma of disturbance before every step: each sample still ends at a"
        " known digit, but not each digit is met equally often.",
    )
