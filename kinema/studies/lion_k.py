"""Lion and its relatives as constrained optimisation: optima against SciPy, phases and falls of real trainings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import SERIES_LIGHT
from kinema.studies import lion_k_problems as problems
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.lion_k_problems import FAMILY, GEOMETRIES, LION, SHRINK, Digits, Quadratic, Training
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify.lyapunov import TOLERANCE


class Size(NamedTuple):
    """Quadratics a seed, steps on them and decays of Lion there (the rest of the family has 1); members of the family;
    digits and steps of training, geometries trained."""

    problems: int
    steps: int
    decays: tuple[float, ...]
    family: tuple[str, ...]
    digits: int
    training: int
    trained: tuple[str, ...]


DECAYS = (0.5, 1.0, 2.0)
SIZES = {
    "smoke": Size(1, 20_000, (1.0,), (LION,), 32, 600, (LION,)),
    "quick": Size(4, 20_000, DECAYS, tuple(FAMILY), 500, 1500, tuple(GEOMETRIES)),
    "full": Size(64, 100_000, DECAYS, tuple(FAMILY), 1500, 10_000, tuple(GEOMETRIES)),
}


@study(
    "lion-k",
    "Chen et al., 2024, arXiv 2310.05898",
    "Lion minimises f where every weight is at most 1/λ: its gap to the bounded optimum is below 1e-8. Weights enter "
    "the constraint by the predicted step and never leave it; inside, the Lyapunov function falls but for the "
    "curvature of a step. Other convex K have other constraints, Muon's among them.",
    title="Lion as constrained optimisation",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    with jax.enable_x64(True):
        found = [measured(size, jr.key(seed)) for seed in seeds]
    first = found[0].trainings
    smooth = [name for name in size.trained if name == "huber"]
    metrics = [
        Metric("gap of Lion to the optimum in a box, by L-BFGS-B", [one.box for one in found], 1e-8),
        Metric("gap of the worst K to SciPy", [one.scipy for one in found], 1e-6),
        Metric("certified gap of the worst K", [one.certified for one in found], 1e-6),
        Metric("rise of H beyond the curvature of a step", [worst(one, rise_beyond) for one in found], 1e-12),
        *(
            Metric(f"rise of H in a step, {name}", [one.trainings[name].rises.max() for one in found], 1e-12)
            for name in smooth
        ),
        Metric("rise of H in a step, Lion", [one.trainings[LION].rises.max() for one in found], 1e-12),
        Metric("steps outside after entering", [worst(one, lambda run: run.left) for one in found], 0.0),
        Metric("steps to enter, over the bound", [worst(one, entering) for one in found], 1.0),
        Metric("max |λw| - 1 of Lion at the end, over ηλ", [one.excess for one in found], 1.0),
        Metric("share of Lion's weights within 1 % of their bound", [one.piled for one in found]),
        Metric("difference from optax.lion", [one.lion for one in found], 0.0),
        Metric("difference from Muon's directions", [one.muon for one in found], 1e-4),
    ]
    return Evidence(
        metrics=metrics,
        figures=[phases(first), histogram(first)],
        tables=[family(size, found), trainings(size, found)],
        settings={
            "quadratics": f"{size.problems} a seed of 6 variables, {size.steps} steps, rate 0.1 falling to 1e-8",
            "training": f"{size.digits} digits, 64-32-10 tanh, all data at each step, float64, implicit decay",
            "decay": {name: GEOMETRIES[name][1] for name in size.trained},
            "rate times decay": SHRINK,
        },
    )


class Measured(NamedTuple):
    """Of one seed: gaps on the quadratics by K, trainings by geometry, and the worst of each."""

    gaps: dict[str, tuple[float, float | None]]
    trainings: dict[str, Training]
    box: float
    lion: float
    muon: float

    @property
    def certified(self) -> float:
        return max(gap for gap, _ in self.gaps.values())

    @property
    def scipy(self) -> float:
        return max(abs(gap) for _, gap in self.gaps.values() if gap is not None)

    @property
    def scaled(self) -> np.ndarray:
        """|λw| of Lion's weights at the end."""
        return GEOMETRIES[LION][1] * np.abs(
            np.concatenate([np.ravel(w) for w in jax.tree.leaves(self.trainings[LION].params)])
        )

    @property
    def excess(self) -> float:
        return float(self.scaled.max() - 1) / SHRINK

    @property
    def piled(self) -> float:
        return float(np.mean(self.scaled > 0.99))


def measured(size: Size, key) -> Measured:
    key_problems, key_start = jr.split(key)
    drawn = jax.vmap(Quadratic.draw)(jr.split(key_problems, size.problems))
    gaps = {name: solved(drawn, name, 1.0, size.steps) for name in size.family}
    boxed = [solved(drawn, LION, decay, size.steps)[1] for decay in size.decays]
    data = Digits.load(size.digits)
    trained = {name: problems.train(data, name, size.training, key_start) for name in size.trained}
    steps, begun = min(size.training, 300), problems.start(key_start)
    lion, muon = problems.against_lion(data, steps, begun), float(problems.against_muon(data, steps, begun))
    return Measured(gaps, trained, max(abs(gap) for gap in boxed if gap is not None), lion, muon)


def solved(drawn: Quadratic, name: str, decay: float, steps: int) -> tuple[float, float | None]:
    """(certified gap, gap to SciPy) of the worst problem."""
    _, values, certified = problems.solve(drawn, name, decay, steps)
    gaps = []
    for index, value in enumerate(np.asarray(values)):
        best = problems.by_scipy(jax.tree.map(lambda leaf, index=index: leaf[index], drawn), name, decay)
        gaps += [] if best is None else [float(value - best)]
    return float(jnp.max(certified)), max(gaps, key=abs, default=None)


def worst(one: Measured, number) -> float:
    return max(float(number(run)) for run in one.trainings.values())


def rise_beyond(run: Training) -> float:
    return run.beyond.max()


def entering(run: Training) -> float:
    """Steps to enter over ln(distance / tolerance) / ln(1 + ηλ), the worst leaf's."""
    ratios = [
        np.argmax(distance <= TOLERANCE) / np.ceil(np.log(distance[0] / TOLERANCE) / np.log1p(SHRINK))
        for distance in run.trace.distance.values()
        if distance[0] > TOLERANCE
    ]
    return max(ratios)


def family(size: Size, found: list[Measured]) -> Table:
    rows = []
    for name in size.family:
        by_scipy = [one.gaps[name][1] for one in found]
        rows.append(
            [
                name,
                Spread.of([one.gaps[name][0] for one in found]),
                "" if None in by_scipy else Spread.of([abs(gap) for gap in by_scipy if gap is not None]),
            ]
        )
    return Table("Quadratics: how far above the optimum", ["K", "certified", "by SciPy"], rows)


def trainings(size: Size, found: list[Measured]) -> Table:
    rows = []
    for name in size.trained:
        runs = [one.trainings[name] for one in found]
        rows.append(
            [
                name,
                Spread.of([float(np.argmax(run.trace.phase == 2)) for run in runs]),
                Spread.of([entering(run) for run in runs]),
                Spread.of([run.rises.max() for run in runs]),
                Spread.of([run.beyond.max() for run in runs]),
                Spread.of([run.trace.loss[-1] for run in runs]),
                Spread.of([run.accuracy for run in runs]),
            ]
        )
    heads = ["K", "entered at step", "over the bound", "largest rise of H", "less curvature", "loss", "accuracy"]
    return Table("Trainings on digits", heads, rows)


def phases(runs: dict[str, Training]) -> Picture:
    """Distance to the constraint, then H."""
    with house(6.4, 3.0, ncols=2) as (figure, axes):
        for index, (name, run) in enumerate(runs.items()):
            colour, steps = SERIES_LIGHT[index % len(SERIES_LIGHT)], run.trace.steps
            shown = slice(None, None, max(1, len(steps) // 300))
            axes[0].plot(steps[shown], np.maximum(run.distance[shown], 1e-9), color=colour, label=name)
            inside = run.trace.phase == 2
            above = run.trace.value[inside] - run.trace.value[inside].min()
            axes[1].plot(steps[inside][shown], np.maximum(above[shown], 1e-7), color=colour)
        bound = next(iter(runs.values())).distance[0] * (1 + SHRINK) ** -steps.astype(float)
        axes[0].plot(steps[bound > 1e-9], bound[bound > 1e-9], color="grey", ls=":", label="bound of Lion")
        axes[0].axhline(TOLERANCE, color="grey", lw=0.8)
        axes[0].set(yscale="log", ylim=(1e-6, None), xlabel="step", ylabel="distance of λw to its set")
        axes[1].set(yscale="log", xlabel="step", ylabel="H above its least, once inside")
        axes[0].legend(fontsize=7)
    return Picture(
        "phases",
        figure,
        "Distance of the weights to their constraint set against the step, and the Lyapunov function once inside",
        "Phase 1: the distance falls at least as fast as the bound, whatever the loss. Phase 2: H falls, to a chatter.",
    )


def histogram(runs: dict[str, Training]) -> Picture:
    with house(4.8, 2.6) as (figure, axes):
        scaled = GEOMETRIES[LION][1] * np.concatenate([np.ravel(w) for w in jax.tree.leaves(runs[LION].params)])
        axes.hist(scaled, bins=np.arange(-1.0875, 1.1, 0.025))
        axes.set(xlabel="λ times weight", ylabel="weights")
    return Picture(
        "weights",
        figure,
        "Histogram of the weights that Lion ends with, times the decay",
        "Weights trained with Lion pile up at ±1/λ, the walls of the box.",
    )
