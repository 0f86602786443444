"""Equilibrium propagation without symmetric weights: what homeostasis of the Jacobian restores, and its worth."""

from typing import NamedTuple

import numpy as np
import optax

from kinema.learn import equilibrium as eq
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies import equilibrium_propagation_runs as runs
from kinema.studies.equilibrium_propagation_runs import Alignment, Data, Nets, Run
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """Layers of the networks; steps of homeostasis alone, how often alignment is looked at, and whether on plain digits
    or on those of the task; steps of the task, copies of each digit; Cauchy points and angles at which their bias is
    measured."""

    layers: tuple[int, ...]
    alone: int
    looks: int
    plain: bool
    training: int
    copies: int
    points: tuple[int, ...]
    angles: tuple[float, ...]


SIZES = {
    "smoke": Size((8, 8, 6), 20, 1, False, 10, 1, (4,), (0.0,)),
    "quick": Size((64, 64, 32), 400, 8, True, 3000, 20, (1, 2, 3, 4, 6, 8), (0.0, 30.0, 90.0)),
    "full": Size((256, 256, 128), 1000, 20, True, 20_000, 100, (1, 2, 3, 4, 6, 8, 12, 16), (0.0, 30.0, 90.0)),
}
ANGLE, BETA = 90.0, 0.5
RATE, BATCH, STEPS = 2e-3, 32, (40, 20)
ALONE = {"rate": 3e-3, "batch": 8, "steps": 60}
HOMEOSTASIS = 5.0
BACK, PLAIN, HELD = "back-propagation", "no homeostasis", "homeostasis"


@study(
    "equilibrium-propagation",
    "Laborieux & Zenke, 2024, arXiv 2309.02214",
    "Equilibrium propagation gives the exact gradient where weights are symmetric and a wrong one where feedback is "
    "independent. 200 steps of homeostasis alone align it to 0.93 in every layer, and training with homeostasis closes "
    "at least 60 % of the accuracy gap to back-propagation.",
    title="Equilibrium propagation without symmetric weights",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    placed = runs.placed_digits(size.copies)
    digits = runs.plain_digits() if size.plain else placed
    exact, biases = nudges(size, digits, seeds)
    steps, with_, without = alone(size, digits, seeds)
    marked = int(np.argmin(np.abs(np.asarray(steps) - size.alone // 2)))
    trained = {name: judged(name, size, placed, seeds) for name in (BACK, PLAIN, HELD)}
    scores = {name: one.accuracy for name, one in trained.items()}
    gap = scores[BACK] - scores[PLAIN]
    return Evidence(
        metrics=[
            Metric("error of the derivative estimate, symmetric weights, float64", exact, 1e-7),
            Metric("cosine to the gradient at the start, all layers", with_[0].together, 0.46),
            Metric(
                f"cosine after {steps[marked]} steps of homeostasis alone, worst layer",
                *(with_[marked].worst, 0.93, ">="),
                baseline=with_[0].worst,
                against="at the start",
            ),
            Metric(f"cosine after {steps[marked]} steps of the task alone, worst layer", without[marked].worst, 0.5),
            Metric("share of the gap to back-propagation closed", (scores[HELD] - scores[PLAIN]) / gap, 0.6, ">="),
            Metric("accuracy with homeostasis", scores[HELD], baseline=scores[BACK], against=BACK),
            Metric("accuracy without", scores[PLAIN], baseline=scores[BACK], against=BACK),
            Metric(
                "cosine after the task with homeostasis, worst layer",
                trained[HELD].alignment.worst,
                baseline=trained[PLAIN].alignment.worst,
                against="without",
            ),
        ],
        figures=[aligned_picture(steps, with_, without), bias_picture(size, biases)],
        tables=[
            Table(
                "Digits anywhere in noise, held out",
                ["trained by", "accuracy", *(f"cosine, layer {n + 1}" for n in range(len(size.layers))), "unsettled"],
                [
                    [
                        name,
                        *(Spread.of(values) for values in (one.accuracy, *one.alignment.by_layer.T)),
                        Spread.of(one.alignment.unsettled),
                    ]
                    for name, one in trained.items()
                ],
            ),
            Table(
                f"Error of a nudge of {BETA:g}, relative to the limit of no nudge",
                ["feedback angle", *(f"{count} points" for count in size.points)],
                [[f"{angle:g}°", *map(Spread.of, rows.T)] for angle, rows in biases.items()],
            ),
        ],
        settings={
            "network": f"dense layers {size.layers}, softmax readout, feedback at {ANGLE:g} degrees",
            "homeostasis alone": f"{'plain 8 x 8 digits' if size.plain else 'digits of the task'}, Adam "
            f"{ALONE['rate']:g}, batch {ALONE['batch']}, 5 probes",
            "task": f"digits anywhere on 12 x 12 in noise {runs.NOISE:g}, {size.training} steps of Adam {RATE:g} "
            f"falling to 0, batch {BATCH}, {STEPS[0]} free and {STEPS[1]} nudged steps, derivative estimates",
            "weight of homeostasis": HOMEOSTASIS,
            "back-propagation": f"through {STEPS[0]} steps of the same networks, same batches, optimizer and steps",
        },
    )


def nudges(size: Size, digits: Data, seeds) -> tuple[np.ndarray, dict[float, np.ndarray]]:
    """Error of the derivative estimate where weights are symmetric, and of finite nudges by angle (seeds, points)."""
    sizes = (digits.x.shape[1], *size.layers)
    found = {
        angle: runs.errors_of_nudges(sizes, angle, size.points, BETA, digits.x[0], digits.y[0], seeds)
        for angle in size.angles
    }
    return found[0.0][0], {angle: biases for angle, (_, biases) in found.items()}


def alone(size: Size, digits: Data, seeds) -> tuple[list[int], list[Alignment], list[Alignment]]:
    """Alignment over steps of homeostasis alone, and of the task alone at the same rate and batch."""
    nets = Nets.draw((digits.x.shape[1], *size.layers), ANGLE, seeds)
    optimizer, every = runs.falling_adam(ALONE["rate"], 10**9), size.alone // (2 * size.looks) or 1
    found = []
    for source in (
        eq.Homeostasis(steps=ALONE["steps"]),
        eq.EquilibriumPropagation(steps=(ALONE["steps"], STEPS[1])),
    ):
        going, seen = Run.begin(nets, source, optimizer, seeds), []
        for look in range(2 * size.looks + 1):
            going = going.go(digits, every, ALONE["batch"]) if look else going
            seen.append(runs.alignment(going.nets, digits.x[:200], digits.y[:200]))
        found.append(seen)
    return [look * every for look in range(2 * size.looks + 1)], *found


class Judged(NamedTuple):
    """Of every seed after training: accuracy on held-out pictures, and alignment."""

    accuracy: np.ndarray
    alignment: Alignment


def judged(name: str, size: Size, data: Data, seeds) -> Judged:
    source = {
        BACK: runs.mean_loss(STEPS[0]),
        PLAIN: eq.EquilibriumPropagation(steps=STEPS),
        HELD: eq.EquilibriumPropagation(steps=STEPS, homeostasis=HOMEOSTASIS, probes=1),
    }[name]
    nets = Nets.draw((data.x.shape[1], *size.layers), ANGLE, seeds)
    optimizer: optax.GradientTransformation = runs.falling_adam(RATE, size.training)
    done = Run.begin(nets, source, optimizer, seeds).go(data, size.training, BATCH).nets
    score = np.asarray(runs.accuracy(done, data.x_held, data.y_held), np.float64)
    return Judged(score, runs.alignment(done, data.x[:200], data.y[:200]))


def aligned_picture(steps: list[int], with_: list[Alignment], without: list[Alignment]) -> Picture:
    with house(6.4, 2.9, ncols=2, sharey=True) as (figure, axes):
        for ax, seen, title in zip(axes, (with_, without), ("homeostasis alone", "the task alone")):
            cosines = np.stack([one.by_layer for one in seen])
            for layer in range(cosines.shape[2]):
                of = cosines[:, :, layer]
                ax.plot(steps, of.mean(1), label=f"layer {layer + 1}")
                ax.fill_between(steps, of.min(1), of.max(1), alpha=0.15, lw=0)
            ax.set(title=title, xlabel="step", ylim=(-0.4, 1.02))
        axes[0].set_ylabel("cosine to the gradient")
        axes[0].legend(fontsize=7, loc="lower right")
    return Picture(
        "alignment",
        figure,
        "Cosine between estimate and gradient by layer over steps of homeostasis alone and of the task alone",
        "Independent feedback. Homeostasis aligns every layer without a task; the task alone aligns the last.",
    )


def bias_picture(size: Size, biases: dict[float, np.ndarray]) -> Picture:
    with house(4.2, 2.9) as (figure, axes):
        for angle, rows in biases.items():
            axes.plot(size.points, rows.mean(0), marker="o", label=f"feedback at {angle:g}°")
            axes.fill_between(size.points, rows.min(0), rows.max(0), alpha=0.15, lw=0)
        axes.set(yscale="log", xlabel="Cauchy points", ylabel="error of the nudge")
        axes.legend(fontsize=7)
    return Picture(
        "bias",
        figure,
        "Relative error of a finite nudge against the number of points on its circle, by angle of the feedback",
        f"Nudge {BETA:g}, against the limit of no nudge. Symmetric weights are near the radius of analyticity there.",
    )
