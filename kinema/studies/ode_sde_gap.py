"""The ODE-SDE gap: flow and noisy samples of one learned score, measured without samples, and what closes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import learn, models
from kinema.generate import VP, Denoising, FokkerPlanck, Generator, MixturePosterior
from kinema.generate.generator import AbstractGenerator
from kinema.generate.objective import LogUniformTime
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify import flow_density, gap_certificate, grid_wasserstein, noisy_density
from kinema.verify.density_grid import cells


class Size(NamedTuple):
    """How much a preset does: network and steps of training; cells an axis and solver steps; samples of the bound."""

    width: int
    depth: int
    training: int
    cells: int
    steps: int
    certified: int
    weights: tuple[float, ...]


SIZES = {
    "smoke": Size(8, 1, 4, 24, 10, 4, (0.0, 1.0, 10.0)),
    "quick": Size(64, 2, 3000, 96, 150, 128, (0.0, 1.0, 10.0)),
    "full": Size(128, 2, 30_000, 160, 400, 4096, (0.0, 0.1, 1.0, 10.0)),
}
PATH = VP()
CENTRES = 0.65 * np.array([[2, 2], [2, -2], [-2, 2], [-2, -2], [0, 0], [4, 0], [-4, 0], [0, 4], [0, -4]])
BLOB = MixturePosterior(PATH, CENTRES, 0.2 * 0.65**2)
LEAST = 0.15  # noise ratio in which samples are left
SPAN = (float(PATH.log_snr(0.0)), -float(np.log(LEAST)))
REACH = 4.8  # half the side of the grid
DEVIATION = float(np.sqrt(0.2 * 0.65**2 + (CENTRES**2).sum() / 18))


@study(
    "ode-sde-gap",
    "Deveney et al., 2025, arXiv 2311.15996",
    "A learned score is the score of no diffusion, so its flow and its noisy samples end in different laws. The "
    "Fokker-Planck residual closes the gap: at weight 1 its squared Wasserstein distance falls at least fourfold; at "
    "weight 10 the noisy samples pay for it.",
    title="The ODE-SDE gap",
    stage="verify",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    found = {weight: [measured(weight, size, jr.key(seed)) for seed in seeds] for weight in size.weights}
    plain, held, heavy = found[0.0], found[1.0], found[10.0]
    floor = distances(BLOB, size)
    return Evidence(
        metrics=[
            Metric(
                "squared W2 of flow to noisy samples, weight 0 over weight 1",
                [(a.ode_sde / b.ode_sde) ** 2 for a, b in zip(plain, held)],
                4.0,
                ">=",
            ),
            Metric(
                "W2 of noisy samples to data, weight 10 over weight 0",
                [b.sde_data / a.sde_data for a, b in zip(plain, heavy)],
                1.5,
                ">=",
            ),
            Metric(
                "KL of flow from noisy samples over its bound, worst weight",
                np.max([[one.kl / one.certificate for one in rows] for rows in found.values()], 0),
                1.0,
            ),
            Metric("W2 of the exact score's flow to its noisy samples", floor.ode_sde),
        ],
        figures=[weights_picture(found), densities_picture([plain[0], held[0]])],
        tables=[
            Table(
                "Sliced W2 on the plane, residual in nats per unit of log time, KL in nats",
                ["weight", "residual", "flow to noisy", "flow to data", "noisy to data", "KL", "its bound", "W2 bound"],
                [
                    [f"{weight:g}", *(Spread.of([getattr(one, name) for one in rows]) for name in COLUMNS)]
                    for weight, rows in found.items()
                ]
                + [["exact score", "0", floor.ode_sde, floor.ode_data, floor.sde_data, floor.kl, "", ""]],
            )
        ],
        settings={
            "data": "nine Gaussians of deviation 0.29 on the plane, left in noise of ratio 0.15",
            "network": f"gradient of a perceptron {size.width} x {size.depth}, predicts the residual, VP path",
            "training": f"{size.training} steps, batch 256, 64 points of the residual, times uniform in log tau",
            "densities": f"{size.cells} x {size.cells} cells, {size.steps} steps; flow by its likelihood",
        },
    )


COLUMNS = ("residual", "ode_sde", "ode_data", "sde_data", "kl", "certificate", "w2_bound")


class Measured(NamedTuple):
    """Distances of the two laws to each other and to the data; what bounds them; the densities."""

    ode_sde: float
    ode_data: float
    sde_data: float
    kl: float
    residual: float = 0.0
    certificate: float = 0.0
    w2_bound: float = 0.0
    densities: tuple[np.ndarray, ...] = ()


def measured(weight: float, size: Size, key) -> Measured:
    key_data, key_net, key_fit, key_bound = jr.split(key, 4)
    x1 = jax.vmap(BLOB.draw)(jr.split(key_data, 20_000))
    net = models.PotentialMLP((2,), width=size.width, depth=size.depth, key=key_net)
    times = LogUniformTime(LEAST)
    objective = FokkerPlanck(Denoising(times=times), jnp.asarray(weight), times, points=64)
    run = learn.fit(
        Generator(PATH, net, predicts="residual", sigma_data=DEVIATION),
        objective,
        x1,
        optimizer=learn.adam(2e-3, size.training),
        steps=size.training,
        batch_size=256,
        key=key_fit,
        ema=0.99,
        chunk=min(size.training, 500),
        progress=True,
    )
    bound = gap_certificate(
        run.ema, key=key_bound, shape=(2,), n=size.certified, steps=max(size.steps // 3, 1), span=SPAN
    )
    residual = float(np.sqrt(np.mean(np.square(run.history.metrics["residual"][-200:]))))
    found = distances(run.ema, size)
    return found._replace(residual=residual, certificate=float(bound.kl), w2_bound=float(bound.w2))


def distances(gen: AbstractGenerator, size: Size) -> Measured:
    """Flow, noisy samples and data compared on a grid."""
    centres = jnp.asarray((np.arange(size.cells) + 0.5) / size.cells * 2 * REACH - REACH)
    noisy = noisy_density(gen, centres, dim=2, steps=size.steps, span=SPAN)
    flow = flow_density(gen, centres, dim=2, steps=max(size.steps // 3, 1), span=SPAN)
    truth = exact(centres)
    pairs = (flow, noisy), (flow, truth), (noisy, truth)
    apart = [grid_wasserstein(one, other, centres) for one, other in pairs]
    densities = tuple(np.asarray(one, np.float64) for one in (flow, noisy))
    p, q = (np.maximum(one, 1e-12) for one in densities)
    return Measured(*apart, kl=float((p * np.log(p / q)).sum()), densities=densities)


def exact(centres) -> np.ndarray:
    """Mass of the noised data in each cell."""
    t = PATH.time_of_log_snr(SPAN[1])
    mass = np.exp(np.asarray(jax.vmap(lambda x: BLOB.log_prob(t, x))(cells(centres, 2)), np.float64))
    return (mass / mass.sum()).reshape(len(centres), len(centres))


def weights_picture(found: dict[float, list[Measured]]) -> Picture:
    with house() as (figure, axes):
        places = range(len(found))
        names = {"ode_sde": "flow to noisy samples", "ode_data": "flow to data", "sde_data": "noisy samples to data"}
        for name, label in names.items():
            rows = np.array([[getattr(one, name) for one in rows] for rows in found.values()])
            axes.errorbar(places, rows.mean(1), rows.std(1), marker="o", capsize=3, label=label)
        axes.set(yscale="log", xlabel="weight of the residual", ylabel="sliced W2")
        axes.set_xticks(places, [f"{weight:g}" for weight in found])
        axes.legend(fontsize=7)
    return Picture(
        "weights",
        figure,
        "Distances between flow, noisy samples and data against the weight of the Fokker-Planck residual",
        "More weight brings the two samplers together; too much takes both away from the data.",
    )


def densities_picture(rows: list[Measured]) -> Picture:
    """Density of the flow less that of the noisy samples, in units of the largest density."""
    with house(4.8, 2.4, ncols=2) as (figure, axes):
        top = max(one.densities[1].max() for one in rows)
        for ax, one, name in zip(axes, rows, ("weight 0", "weight 1")):
            gap = (one.densities[0] - one.densities[1]).T / top
            shown = ax.imshow(gap, origin="lower", extent=(-REACH, REACH) * 2, cmap="RdBu_r", vmin=-0.2, vmax=0.2)
            ax.set(title=name)
        figure.colorbar(shown, ax=list(axes), shrink=0.8)
    return Picture(
        "densities",
        figure,
        "Density of the flow minus density of the noisy samples, at weight 0 and at weight 1",
        "Flow minus noisy samples, as a share of the largest density. Red: the flow puts more there.",
    )
