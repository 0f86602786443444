"""Neural differential equations: exact gradients without memory, a hidden term found, irregular series, a latent law."""

from collections.abc import Sequence

import jax.random as jr
import numpy as np

from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.neural_differential_equations_bistable import GRID, SIGMA, Bistable, bistable, density
from kinema.studies.neural_differential_equations_hidden import DEATH, GAIN, GROWTH, MEETING, Recovered, recovered
from kinema.studies.neural_differential_equations_memory import WAYS, compared
from kinema.studies.neural_differential_equations_series import FEWER, FRAMES, KEPT, accuracies
from kinema.studies.study import study
from kinema.tables import Spread, Table

SIZES = {  # batch, steps and width of the gradient; steps of each fit; series, steps and tests; series, steps and paths
    "smoke": ((4, 50, 8), (20, 10, 5), (32, 10, 32), (16, 10, 32)),
    "quick": ((64, 1600, 32), (800, 600, 200), (128, 200, 512), (256, 1500, 1024)),
    "full": ((256, 6400, 64), (4000, 4000, 1000), (512, 2000, 4096), (4096, 8000, 16384)),
}


@study(
    "neural-differential-equations",
    "Kidger, 2022, arXiv 2202.02435; Kidger et al., 2021, arXiv 2105.13493; McCallum and Foster, 2024",
    "The reversible adjoint gives the gradient of the discrete solve to rounding in a fiftieth of the memory of stored "
    "steps or less; a hidden term of known physics is recovered as a formula; a neural CDE tells irregular series apart "
    "where a recurrent network cannot; a latent SDE has the stationary law of a bistable process.",
    title="Neural differential equations",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    gradient, fits, series, latent = SIZES[preset]
    ways = compared(*gradient, [jr.key(seed) for seed in seeds])
    hidden = [recovered(fits, jr.key(seed)) for seed in seeds]
    told = [accuracies(*series, jr.key(seed)) for seed in seeds]
    wells = [bistable(*latent, jr.key(seed)) for seed in seeds]
    saved = {name: ways[name]["bytes"] / ways["reversible"]["bytes"] for name in WAYS}
    return Evidence(
        metrics=[
            Metric("gradient of the reversible adjoint, relative error", ways["reversible"]["errors"], 1e-12),
            Metric("memory of stored steps over that of the reversible adjoint", saved["stored steps"], 50.0, ">=", unit="x"),
            Metric("memory of checkpoints over that of the reversible adjoint", saved["checkpoints"], unit="x"),
            Metric("hidden term recovered, share of seeds", [float(one.exact) for one in hidden], 1.0, ">="),
            Metric("constants of the hidden term, largest relative error", [one.constants for one in hidden], 0.02),
            Metric(
                "forecast error over three times the observed time",
                [one.forecast for one in hidden],
                baseline=[one.forecast_network for one in hidden],
                against="the network before the formula",
            ),
            Metric(
                "accuracy on irregular series, neural CDE",
                [one["neural CDE"][KEPT] for one in told],
                0.97,
                ">=",
                baseline=[one["recurrent network"][KEPT] for one in told],
                against="recurrent network",
            ),
            Metric("accuracy over that of the recurrent network", [_ahead(one, KEPT) for one in told], 0.05, ">="),
            Metric(
                "accuracy with fewer numbers kept than in training",
                [one["neural CDE"][FEWER] for one in told],
                baseline=[one["recurrent network"][FEWER] for one in told],
                against="recurrent network",
            ),
            Metric(
                "distance to the stationary law of the double well",
                [one.distance for one in wells],
                0.07,
                baseline=[one.gaussian for one in wells],
                against="Gaussian of the true moments",
            ),
            Metric("noise of the latent SDE over the true noise", [one.noise / SIGMA for one in wells]),
        ],
        figures=[wells_picture(wells[0]), front_picture(hidden)],
        tables=[ways_table(ways), formula_table(hidden)],
        settings={
            "gradient": "4 numbers, two networks, reversible Heun over 2 units of time, float64",
            "batch, steps, width": list(gradient),
            "Lotka-Volterra": f"growth {GROWTH}, meeting {MEETING}, gain {GAIN}, death {DEATH}; known: growth, death",
            "series": f"{FRAMES} frames, {KEPT} of the numbers kept, {FEWER} in the second test",
        },
    )


def _ahead(one: dict[str, dict[float, float]], kept: float) -> float:
    return one["neural CDE"][kept] - one["recurrent network"][kept]


def ways_table(ways: dict[str, dict]) -> Table:
    rows = [
        (name, Spread.of(way["errors"]), way["bytes"] / 2**20, 1e3 * way["seconds"]) for name, way in ways.items()
    ]
    return Table("One gradient", ("adjoint", "relative error", "MiB of temporaries", "milliseconds"), rows)


def formula_table(hidden: Sequence[Recovered]) -> Table:
    rows = [(f"seed {i}", *one.equations) for i, one in enumerate(hidden)]
    return Table(
        "The hidden term as found", ("", f"prey, truth -{MEETING} x y", f"predators, truth {GAIN} x y"), rows
    )


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
