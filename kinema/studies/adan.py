"""Adan beside tuned AdamW on a small vision transformer and a deep autoencoder; optax's Adan beside the algorithm."""

from typing import NamedTuple

import numpy as np

from kinema.report.charts import house, log_scale
from kinema.report.picture import Picture
from kinema.studies import adan_tasks as tasks
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """Steps that are judged, and how many times that AdamW may take; rates of the transformer; the autoencoder's steps
    and rates; seeds on which settings are chosen."""

    steps: int
    times: int
    rates: tuple[float, ...]
    deep: int
    deep_rates: tuple[float, ...]
    tuning: tuple[int, ...]


GRID = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
DEEP = (1e-2, 2e-2, 5e-2, 1e-1)
SIZES = {
    "smoke": Size(4, 2, (1e-2,), 0, (), (1000,)),
    "quick": Size(200, 2, GRID, 600, DEEP, (1000, 1001)),
    "full": Size(2000, 2, (1e-3, 2e-3, *GRID), 6000, (5e-3, *DEEP), (1000, 1001, 1002, 1003)),
}
KEPT = (0.9, 0.98)  # b1, the first moment's share, on the grid of both
ADAMW, ADAN = "AdamW", "Adan"


@study(
    "adan",
    "Xie et al., 2024, arXiv 2208.06677",
    "On a small vision transformer AdamW at its best rate needs at least 1.2 times the steps to reach the loss that "
    "Adan at its best rate has after 200, and Adan's usable rates span at least twice as wide a range.",
    title="Nesterov's look-ahead for Adam: Adan",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    ours, other = np.transpose([tasks.against_algorithm(seed) for seed in seeds])
    chosen = {name: choose(name, size) for name in (ADAMW, ADAN)}
    curves = {
        name: {rate: tasks.transformer(name, rate, b1, size.steps, seeds) for rate in size.rates}
        for name, (_, b1) in chosen.items()
    }
    ends = {name: np.array([ending(curve) for curve in found.values()]).T for name, found in curves.items()}
    best = {name: ending(curves[name][chosen[name][0]]) for name in chosen}
    slow = tasks.transformer(ADAMW, *chosen[ADAMW], size.steps, seeds, size.times)
    needed = [steps_to(curve, loss) for curve, loss in zip(slow, best[ADAN])]
    span = {name: np.array([usable(size.rates, row) for row in ends[name]]) for name in ends}
    metrics = [
        Metric("distance to the algorithm after 50 steps", ours, 1e-12, baseline=other, against="optax.adan"),
        Metric("steps AdamW needs over Adan's", np.divide(needed, size.steps), 1.2, ">=", unit="x"),
        Metric("range of usable rates, Adan over AdamW", span[ADAN] / span[ADAMW], 2.0, ">=", unit="x"),
        Metric("loss of the transformer, Adan", best[ADAN], baseline=best[ADAMW], against=ADAMW),
    ]
    tables = [
        Table(
            f"Transformer: loss after {size.steps} steps, at the b1 that was chosen",
            ["optimizer", "b1", *(f"rate {rate:g}" for rate in size.rates)],
            [[name, f"{chosen[name][1]:g}", *map(Spread.of, ends[name].T)] for name in ends],
        )
    ]
    if size.deep:
        deep = {
            name: np.array([ending(tasks.autoencoder(name, rate, size.deep, seeds)) for rate in size.deep_rates]).T
            for name in chosen
        }
        least = {name: found.min(1) for name, found in deep.items()}
        metrics.append(Metric("loss of the autoencoder, Adan", least[ADAN], baseline=least[ADAMW], against="Adam"))
        tables.append(
            Table(
                f"Deep autoencoder: squared error a digit after {size.deep} steps, default b1, no decay",
                ["optimizer", *(f"rate {rate:g}" for rate in size.deep_rates)],
                [[name, *map(Spread.of, found.T)] for name, found in zip(("Adam", ADAN), deep.values())],
            )
        )
    return Evidence(
        metrics=metrics,
        figures=[picture(size, ends, slow, curves[ADAN][chosen[ADAN][0]])],
        tables=tables,
        settings={
            "transformer": "16 tokens, width 24, 2 blocks, digits, batch 64, decay 0.02, constant rates; "
            f"training loss, mean of {tasks.WINDOW} steps",
            "chosen on seeds of their own": f"{list(size.tuning)}: (rate, b1) of "
            + ", ".join(f"{name} {chosen[name]}" for name in chosen),
            "grid of both": f"rates {list(size.rates)}, b1 {list(KEPT)}; usable: within twice the best loss",
            "catching up": f"AdamW may take {size.times * size.steps} steps; one that does not arrive counts as that",
            "autoencoder": "64-128-64-32-8-32-64-128-64, tanh, batch 256",
            "algorithm": "least squares of 10 numbers in double precision, rate 0.1, the published rule in NumPy",
        },
    )


def choose(name: str, size: Size) -> tuple[float, float]:
    """Rate and b1 of the least mean loss on the tuning seeds."""
    found = {
        (rate, b1): ending(tasks.transformer(name, rate, b1, size.steps, size.tuning)).mean()
        for rate in size.rates
        for b1 in KEPT
    }
    return min(found, key=lambda one: np.nan_to_num(found[one], nan=np.inf))


def ending(curves: np.ndarray) -> np.ndarray:
    """The loss at the end of every curve (seeds, steps)."""
    return curves[:, -tasks.WINDOW :].mean(1)


def steps_to(curve: np.ndarray, loss: float) -> int:
    """The steps after which the running mean is at most `loss`; all of them if it never is."""
    window = min(tasks.WINDOW, len(curve))
    means = np.convolve(curve, np.full(window, 1 / window), "valid")
    return int(np.argmax(means <= loss)) + window if (means <= loss).any() else len(curve)


def usable(rates, losses: np.ndarray) -> float:
    """Largest over smallest rate whose loss is within twice the best."""
    good = np.asarray(rates)[losses <= 2 * np.nanmin(losses)]
    return float(good.max() / good.min())


def picture(size: Size, ends, slow: np.ndarray, fast: np.ndarray) -> Picture:
    with house(6.4, 3.0, ncols=2) as (figure, axes):
        for name, curves in ((ADAMW, slow), (ADAN, fast)):
            window = min(tasks.WINDOW, curves.shape[1])
            means = np.stack([np.convolve(curve, np.full(window, 1 / window), "valid") for curve in curves])
            steps = np.arange(means.shape[1]) + window
            axes[0].plot(steps, means.mean(0), label=name)
            axes[0].fill_between(steps, means.min(0), means.max(0), alpha=0.2, lw=0)
            axes[1].errorbar(size.rates, ends[name].mean(0), ends[name].std(0), marker="o", capsize=3)
        axes[0].set(xlabel="step", ylabel="training loss")
        axes[1].set(xlabel="rate", ylabel=f"loss after {size.steps} steps")
        log_scale(axes[0], "y")
        log_scale(axes[1], "x", "y")
        axes[0].legend(fontsize=7)
    return Picture(
        "transformer",
        figure,
        "Training loss of a small vision transformer against steps at the best rates, and at the end against the rate",
        "Left: at the rate and b1 chosen on other seeds, band over seeds. Right: every rate.",
    )
