"""Optimizers on four small tasks, each with the same number of trials of rate and decay, beside tuned AdamW."""

from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import LIGHT, MARKERS, SERIES_LIGHT
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.optimizer_zoo_tasks import BATCH, OPTIMIZERS, OURS, TASKS, VALIDATION, Losses, train
from kinema.studies.study import study
from kinema.tables import Spread, Table, number


class Size(NamedTuple):
    """Trials an optimizer and task, their steps, the networks' width; seeds on which settings are chosen."""

    trials: int
    steps: int
    width: int
    tuning: tuple[int, ...]
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    tasks: tuple[str, ...] = tuple(TASKS)


ADAMW = "AdamW"
SIZES = {
    "smoke": Size(2, 3, 4, (1000,), (ADAMW, "Adan"), ("diabetes",)),
    "quick": Size(16, 200, 32, (1000, 1001)),
    "full": Size(64, 5000, 128, (1000, 1001, 1002)),
}
RATE_DECADES, DECAY_DECADES = 4.0, 2.0  # of the search, half of them on each side of the documented start
NEAR = 1.1  # a trial is near the best up to this ratio of validation losses
RATIOS = (0.25, 0.5, 1, 2, 4)  # labelled in the picture


@study(
    "optimizer-zoo",
    "Schmidt, Schneider & Hennig, 2021, arXiv 2007.01547",
    "With as many trials of rate and decay as AdamW has, AdamP, SGDP, Adan and Lion-K with Huber's K each end with a "
    "test loss at most 1.25 times that of AdamW on each of four small tasks.",
    title="Which optimizer?",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    found = {}
    for task in size.tasks:
        data = TASKS[task].data()
        for name in size.optimizers:
            rates, decays = trials(name, size.trials)
            every = train(task, name, data, rates, decays, (*size.tuning, *seeds), steps=size.steps, width=size.width)
            found[task, name] = Tuned.of(rates, decays, every, len(size.tuning))
    over = {key: one.test / found[key[0], ADAMW].test for key, one in found.items()}
    ours = [name for name in size.optimizers if name in OURS]
    picked = {task: min(size.optimizers, key=lambda name: found[task, name].validation) for task in size.tasks}
    near = {name: np.mean([found[task, name].near for task in size.tasks], axis=0) for name in size.optimizers}
    metrics = [
        Metric(
            "test loss over AdamW's, worst of our optimizers and tasks",
            np.max([over[task, name] for task in size.tasks for name in ours], axis=0),
            1.25,
            unit="x",
        ),
        Metric(
            "test loss over AdamW's, optimizer chosen on validation, mean over tasks",
            np.mean([over[task, name] for task, name in picked.items()], axis=0),
            unit="x",
        ),
        *(
            Metric(f"share of trials near the best, {name}", near[name], baseline=near[ADAMW], against=ADAMW)
            for name in ours
        ),
    ]
    return Evidence(
        metrics=metrics,
        figures=[picture(size, found, over)],
        tables=[
            grid(
                size, "Test loss at the setting chosen on other seeds", {k: Spread.of(v.test) for k, v in found.items()}
            ),
            grid(size, "Test loss over AdamW's", {key: Spread.of(ratios) for key, ratios in over.items()}),
            grid(size, "Chosen rate, decay", {k: f"{number(v.rate)}, {number(v.decay)}" for k, v in found.items()}),
            grid(size, "Share of trials near the best", {k: Spread.of(v.near) for k, v in found.items()}),
        ],
        settings={
            "trials": f"{size.trials} for each optimizer and task, the same Halton points (scipy.stats.qmc) for all: "
            f"{RATE_DECADES:g} decades of rate and {DECAY_DECADES:g} of decay around (rate, decay) of "
            + ", ".join(f"{name} ({OPTIMIZERS[name].rate:g}, {OPTIMIZERS[name].decay:g})" for name in size.optimizers),
            "chosen": f"least mean validation loss on seeds {list(size.tuning)}; the test rows are the same for all "
            "seeds and never trained or chosen on",
            "near the best": f"validation loss within {100 * (NEAR - 1):.0f} % of the optimizer's own best on the task",
            "training": f"{size.steps} steps, batch {BATCH}, cosine to 0, decay of matrices only, width {size.width}; "
            f"{100 * VALIDATION:.0f} % of the pool validates",
            "picked": picked,
        },
    )


def trials(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates and decays `(n,)` around an optimizer's documented start, in decades from it the same for all."""
    start = OPTIMIZERS[name]
    # Halton's first point is the corner (0, 0)
    places = qmc.Halton(2, scramble=False).fast_forward(1).random(n) - 0.5
    rates, decays = (10 ** (places * (RATE_DECADES, DECAY_DECADES))).T
    return (start.rate * rates).astype(np.float32), (start.decay * decays).astype(np.float32)


class Tuned(NamedTuple):
    """The chosen setting and its validation loss on the tuning seeds; on the study's seeds its test loss and the share
    of trials near the best."""

    rate: float
    decay: float
    validation: float
    test: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, rates: np.ndarray, decays: np.ndarray, losses: Losses, tuning: int) -> "Tuned":
        """From losses whose first `tuning` rows are those of the tuning seeds."""
        means = losses.validation[:tuning].mean(0)
        best, judged = int(np.argmin(means)), losses.validation[tuning:]
        near = np.mean(judged <= NEAR * judged.min(1, keepdims=True), axis=1)
        return cls(float(rates[best]), float(decays[best]), float(means[best]), losses.test[tuning:, best], near)


def grid(size: Size, title: str, cells: dict) -> Table:
    rows = [[name, *(cells[task, name] for task in size.tasks)] for name in size.optimizers]
    return Table(title, ["optimizer", *size.tasks], rows)


def picture(size: Size, found: dict[tuple[str, str], Tuned], over: dict[tuple[str, str], np.ndarray]) -> Picture:
    with house(6.8, 3.4, ncols=2, sharey=True) as (figure, axes):
        lines = np.arange(len(size.optimizers))
        for k, task in enumerate(size.tasks):
            y = lines + 0.16 * (k - (len(size.tasks) - 1) / 2)
            style = {"color": SERIES_LIGHT[k], "marker": MARKERS[k], "ms": 4, "ls": "", "label": task}
            for panel, values in zip(axes, (over, {key: one.near for key, one in found.items()})):
                each = np.array([values[task, name] for name in size.optimizers])
                middle = each.mean(1)
                panel.errorbar(middle, y, xerr=(middle - each.min(1), each.max(1) - middle), lw=1, **style)
        axes[0].axvline(1, color=LIGHT["soft"], lw=0.8)
        axes[0].set(xscale="log", xlabel="test loss over AdamW's", yticks=lines, yticklabels=size.optimizers)
        axes[0].set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS])
        axes[0].minorticks_off()
        axes[0].invert_yaxis()
        axes[1].set(xlabel="share of trials near the best", xlim=(0, None))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=7)
    return Picture(
        "zoo",
        figure,
        "Test loss of every optimizer over that of AdamW, task by task, and the share of its trials near its best",
        f"{size.trials} trials each; mean over seeds, bars from the least to the largest. Right: trials whose "
        f"validation loss is within {100 * (NEAR - 1):.0f} % of the optimizer's own best.",
    )
