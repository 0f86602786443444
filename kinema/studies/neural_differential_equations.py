"""Neural differential equations: gradients without memory, a hidden term, irregular series, a latent law."""

from collections.abc import Sequence
from typing import Any

import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.neural_differential_equations_bistable import GRID, SIGMA, Bistable, bistable, density
from kinema.studies.neural_differential_equations_hidden import DEATH, GAIN, GROWTH, MEETING, Recovered, recovered
from kinema.studies.neural_differential_equations_memory import WAYS, compared
from kinema.studies.neural_differential_equations_series import FEWER, FRAMES, KEPT, accuracies
from kinema.studies.study import study
from kinema.tables import Spread, Table

SIZES = {  # rows, steps and width of the gradient; steps of each fit; series, steps and tests; series, steps and paths
    "smoke": {"series": (32, 10, 32)},
    "quick": {
        "gradient": (16, 2048, 32),
        "hidden term": (800, 600, 200),
        "series": (128, 200, 512),
        "double well": (1024, 1500, 1024),
    },
    "full": {
        "gradient": (256, 8192, 64),
        "hidden term": (4000, 4000, 1000),
        "series": (512, 2000, 4096),
        "double well": (4096, 8000, 16384),
    },
}


@study(
    "neural-differential-equations",
    "Kidger, 2022, arXiv 2202.02435; Kidger et al., 2021, arXiv 2105.13493; McCallum and Foster, 2024",
    "The reversible adjoint gives the gradient of the discrete solve to rounding, in a fiftieth or less of the memory "
    "of stored steps; a hidden term in known physics is recovered as a formula; a neural CDE learns to tell irregular "
    "series apart in steps that do not suffice a recurrent network; a latent SDE has the stationary law of a bistable "
    "process.",
    title="Neural differential equations",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    keys = [jr.key(seed) for seed in seeds]
    parts = [PARTS[name](sizes, keys) for name, sizes in SIZES[preset].items()]
    return Evidence(
        metrics=[metric for part in parts for metric in part.metrics],
        figures=[picture for part in parts for picture in part.figures],
        tables=[table for part in parts for table in part.tables],
        settings={
            "gradient": "4 numbers a row, two networks, reversible Heun over 2 units of time, float64",
            "Lotka-Volterra": f"growth {GROWTH}, meeting {MEETING}, gain {GAIN}, death {DEATH}; known: growth, death",
            "series": f"{FRAMES} frames, {KEPT} of the numbers kept, {FEWER} in the second test",
            "double well": f"noise {SIGMA}",
            "sizes": {name: list(sizes) for name, sizes in SIZES[preset].items()},
        },
    )


def gradients(sizes: Any, keys: Sequence[PRNGKeyArray]) -> Evidence:
    rows, steps, width = sizes
    ways = compared(rows, steps, width, keys)
    saved = {way: ways[way]["bytes"] / ways["reversible"]["bytes"] for way in WAYS}
    return Evidence(
        metrics=[
            Metric("gradient of the reversible adjoint, relative error", ways["reversible"]["errors"], 1e-12),
            Metric("memory of stored steps over the reversible adjoint's", saved["stored steps"], 50.0, ">=", unit="x"),
            Metric("memory of checkpoints over the reversible adjoint's", saved["checkpoints"], unit="x"),
        ],
        tables=[ways_table(ways)],
    )


def hidden_term(sizes: Any, keys: Sequence[PRNGKeyArray]) -> Evidence:
    found = [recovered(sizes, key) for key in keys]
    return Evidence(
        metrics=[
            Metric("hidden term recovered, share of seeds", [float(one.exact) for one in found], 1.0, ">="),
            Metric("constants of the hidden term, largest relative error", [one.constants for one in found], 0.02),
            Metric(
                "forecast error over three times the observed time",
                [one.forecast for one in found],
                baseline=[one.forecast_network for one in found],
                against="the network before the formula",
            ),
        ],
        figures=[front_picture(found)],
        tables=[formula_table(found)],
    )


def irregular_series(sizes: Any, keys: Sequence[PRNGKeyArray]) -> Evidence:
    n, steps, tests = sizes
    told = [accuracies(n, steps, tests, key) for key in keys]
    both = {kept: [[one[name][kept] for one in told] for name in told[0]] for kept in (KEPT, FEWER)}
    return Evidence(
        metrics=[
            Metric(
                "accuracy on irregular series, neural CDE",
                both[KEPT][0],
                0.97,
                ">=",
                baseline=both[KEPT][1],
                against="recurrent network",
            ),
            Metric(
                "accuracy over the recurrent network's, equal steps",
                np.subtract(both[KEPT][0], both[KEPT][1]),
                0.05,
                ">=",
            ),
            Metric("accuracy of the recurrent network, three times the steps", both[KEPT][2]),
            Metric(
                "accuracy with fewer numbers kept than in training",
                both[FEWER][0],
                baseline=both[FEWER][1],
                against="recurrent network",
            ),
        ]
    )


def double_well(sizes: Any, keys: Sequence[PRNGKeyArray]) -> Evidence:
    n, steps, paths = sizes
    wells = [bistable(n, steps, paths, key) for key in keys]
    return Evidence(
        metrics=[
            Metric(
                "distance to the stationary law of the double well",
                [one.distance for one in wells],
                0.07,
                baseline=[one.gaussian for one in wells],
                against="Gaussian of the true moments",
            ),
            Metric("noise of the latent SDE over the true noise", [one.noise / SIGMA for one in wells]),
        ],
        figures=[wells_picture(wells[0])],
    )


PARTS = {
    "gradient": gradients,
    "hidden term": hidden_term,
    "series": irregular_series,
    "double well": double_well,
}


def ways_table(ways: dict[str, dict]) -> Table:
    rows = [(name, Spread.of(way["errors"]), way["bytes"] / 2**20, 1e3 * way["seconds"]) for name, way in ways.items()]
    return Table("One gradient", ("adjoint", "relative error", "MiB of temporaries", "milliseconds"), rows)


def formula_table(hidden: Sequence[Recovered]) -> Table:
    rows = [(f"seed {i}", *one.equations) for i, one in enumerate(hidden)]
    return Table("The hidden term as found", ("", f"prey, truth -{MEETING} x y", f"predators, truth {GAIN} x y"), rows)


def wells_picture(well: Bistable) -> Picture:
    with house() as (figure, axes):
        axes.hist(well.made, bins=np.linspace(-2, 2, 61), density=True, alpha=0.5, label="latent SDE, later")
        inside = np.abs(GRID) < 2
        axes.plot(GRID[inside], density()[inside], label="stationary law")
        axes.set_xlabel("x")
        axes.set_ylabel("density")
        axes.legend()
    return Picture("wells", figure, "Density of the model's own motion at late times, and the true stationary density.")


def front_picture(hidden: Sequence[Recovered]) -> Picture:
    with house() as (figure, axes):
        for name, index in (("prey", 0), ("predators", 1)):
            losses = np.sqrt(np.mean([one.losses[index] for one in hidden], axis=0))
            axes.semilogy(np.arange(len(losses)), losses, marker="o", label=name)
        axes.set_xlabel("terms")
        axes.set_ylabel("misfit of the network's rate")
        axes.legend()
    return Picture("front", figure, "Misfit of the best formula with each number of terms: it falls once, at one term.")
