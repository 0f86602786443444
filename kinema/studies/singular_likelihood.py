"""Maximum likelihood on a curve and a surface: how much noise to add to data that have no density.

Every law is judged by 1024 points spread evenly over its latent, so that the distance has no sampling error of its own.
"""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from kinema.errors import require
from kinema.generate import LatentModel, fit_latent_likelihood, recommended_noise
from kinema.generate.latent import Uniform
from kinema.report.charts import house, scatter_rows
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # noise over the recommended one
NARROW, WIDE = 0.02, 0.5  # first s of a fit
POINTS, BATCH = 1024, 200
NODES = {1: 256, 2: 32}  # along each axis of the latent
KDE, MIXTURE, RECOMMENDED = "kernel density", "Gaussian mixture", "latent model, wide start"


class Size(NamedTuple):
    """Samples, and training steps on the curve and the surface."""

    samples: int
    steps: dict[int, int]


SIZES = {
    "smoke": Size(300, {1: 20, 2: 10}),
    "quick": Size(2000, {1: 2000, 2: 1200}),
    "full": Size(2000, {1: 10_000, 2: 10_000}),
}


class Found(NamedTuple):
    """W1 by noise from a narrow start, in `SCALES`; of the others by name; points of each law; s of the narrow fits."""

    narrow: list[float]
    others: dict[str, float]
    clouds: dict[str, np.ndarray]
    stds: list[float]


@study(
    "singular-likelihood",
    "Chae et al., 2023, arXiv 2105.04046",
    "On data without a density, maximum likelihood learns the set but not the law on it; with noise of a prescribed "
    "size added to the data, and none to the samples, the law is 1.5 times nearer, and too much noise harms again.",
    title="Likelihood on singular data",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    found = {dim: [measure(dim, size, jr.key(seed)) for seed in seeds] for dim in NODES}
    metrics = []
    for dim, rows in found.items():
        apart = np.array([one.narrow for one in rows])
        best = int(apart.mean(0).argmin())
        ours = [one.others[RECOMMENDED] for one in rows]
        metrics += [
            Metric(f"W1 unperturbed over best noise, d = {dim}", apart[:, 0] / apart[:, best], 1.5, ">="),
            Metric(f"W1 at most noise over best noise, d = {dim}", apart[:, -1] / apart[:, best], 1.5, ">="),
            Metric(f"W1 at recommended noise over best noise, d = {dim}", apart[:, 2] / apart[:, best], 1.3),
            Metric(f"best noise over recommended, d = {dim}", SCALES[best]),
            *(
                Metric(f"W1 over {name}, d = {dim}", np.divide(ours, [one.others[name] for one in rows]), 1.0)
                for name in (KDE, MIXTURE)
            ),
        ]
    return Evidence(
        metrics=metrics,
        figures=[noise_picture(found, size), *(cloud_picture(dim, rows[0]) for dim, rows in found.items())],
        tables=[table(dim, rows, size) for dim, rows in found.items()],
        settings={
            "data": f"{size.samples} samples of a curve in the plane (d = 1), of a torus in space (d = 2)",
            "network": "tanh perceptron, 2 x 32 (d = 1), 2 x 64 (d = 2)",
            "steps": list(size.steps.values()),
            "batch": BATCH,
            "nodes an axis": list(NODES.values()),
            "first s": {"narrow": NARROW, "wide": WIDE},
            "smoothness": 2,
        },
    )


def truth(z: Float[Array, " d"]) -> Float[Array, " D"]:
    """A curve of three lobes, or a torus, crossed at uneven speed as z goes through the unit cube."""
    angle = 2 * jnp.pi * (z[0] + 0.12 * jnp.sin(2 * jnp.pi * z[0]))
    if z.size == 1:
        radius = 1 + 0.35 * jnp.cos(3 * angle)
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    around = 2 * jnp.pi * (z[1] + 0.12 * jnp.sin(2 * jnp.pi * z[1]))
    radius = 1 + 0.4 * jnp.cos(around)
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), 0.4 * jnp.sin(around)])


def evenly(dim: int) -> Float[Array, "points d"]:
    """Points of the unit cube, one in the middle of every cell."""
    return Uniform(dim).nodes(round(POINTS ** (1 / dim)), jnp.full(dim, 0.5))[0]


def wasserstein(x: Any, y: Any) -> float:
    """W1 of two sets of equally many points, by the best assignment."""
    cost = cdist(x, y)
    return float(cost[linear_sum_assignment(cost)].mean())


def measure(dim: int, size: Size, key) -> Found:
    key_data, key_net, key_fit, key_peers = jr.split(jr.fold_in(key, dim), 4)
    data = jax.vmap(truth)(jr.uniform(key_data, (size.samples, dim)))
    true = np.asarray(jax.vmap(truth)(evenly(dim)))
    level = recommended_noise(size.samples, 2, dim)
    fits = [fitted(data, scale * level, NARROW, dim, size, key_net, key_fit) for scale in SCALES]
    clouds = {f"{scale:g} x": points(model) for scale, model in zip(SCALES, fits)}
    others = {RECOMMENDED: points(fitted(data, level, WIDE, dim, size, key_net, key_fit))}
    others["wide start, unperturbed"] = points(fitted(data, 0.0, WIDE, dim, size, key_net, key_fit))
    others |= peers(np.asarray(data), int(jr.randint(key_peers, (), 0, 2**31 - 1)))
    return Found(
        [wasserstein(cloud, true) for cloud in clouds.values()],
        {name: wasserstein(cloud, true) for name, cloud in others.items()},
        {"truth": true} | clouds,
        [float(model.std) for model in fits],
    )


def fitted(data, noise: float, start: float, dim: int, size: Size, key_net, key_fit) -> LatentModel:
    net = eqx.nn.MLP(dim, data.shape[1], 32 * dim, 2, jnp.tanh, key=key_net)
    model = LatentModel(net, Uniform(dim), jnp.log(jnp.asarray(start)))
    with warnings.catch_warnings():
        # The least noise is below the spacing of the nodes: that is part of what is compared
        warnings.simplefilter("ignore", RuntimeWarning)
        return fit_latent_likelihood(
            model,
            data,
            noise,
            steps=size.steps[dim],
            batch_size=BATCH,
            quadrature=NODES[dim],
            key=key_fit,
            progress=True,
        ).model


@eqx.filter_jit
def law(model: LatentModel, z: Float[Array, "points d"]) -> Float[Array, "points D"]:
    return jax.vmap(lambda one: model.decode(model.generator(one)))(z)


def points(model: LatentModel) -> np.ndarray:
    """The fitted law, without noise, as evenly spread points."""
    return np.asarray(law(model, evenly(model.latent.dim)))


def peers(data: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Samples of scikit-learn's estimates, bandwidth and components chosen by held-out likelihood and by BIC."""
    neighbors, mixture = require("sklearn.neighbors", "digits"), require("sklearn.mixture", "digits")
    search = require("sklearn.model_selection", "digits").GridSearchCV
    widths = {"bandwidth": np.geomspace(0.005, 0.5, 8)}
    kernel = search(neighbors.KernelDensity(), widths, cv=3).fit(data).best_estimator_
    mixtures = [mixture.GaussianMixture(k, random_state=seed).fit(data) for k in (8, 16, 32, 64)]
    best = min(mixtures, key=lambda one: one.bic(data))
    return {KDE: kernel.sample(POINTS, random_state=seed), MIXTURE: best.sample(POINTS)[0]}


def table(dim: int, rows: list[Found], size: Size) -> Table:
    level = recommended_noise(size.samples, 2, dim)
    noise = [
        (f"narrow start, noise {scale:g} x {level:.3f}", Spread.of(one.narrow[i] for one in rows), stds)
        for i, scale in enumerate(SCALES)
        for stds in [Spread.of(one.stds[i] for one in rows)]
    ]
    others = [(name, Spread.of(one.others[name] for one in rows), "") for name in rows[0].others]
    return Table(f"W1 to the true law, d = {dim}", ("estimate", "W1", "s found"), [*noise, *others])


def noise_picture(found: dict[int, list[Found]], size: Size) -> Picture:
    with house() as (figure, axes):
        places = range(len(SCALES))
        for i, (dim, rows) in enumerate(found.items()):
            apart = np.array([one.narrow for one in rows])
            axes.fill_between(places, apart.min(0), apart.max(0), color=f"C{i}", alpha=0.15, lw=0)
            name = "curve, d = 1" if dim == 1 else "torus, d = 2"
            axes.plot(places, apart.mean(0), "o-", color=f"C{i}", label=name)
            wide = np.mean([one.others[RECOMMENDED] for one in rows])
            axes.plot(SCALES.index(1.0), wide, "D", color=f"C{i}", mfc="none", label=f"wide start, d = {dim}")
        axes.set_xticks(places, [f"{scale:g}" for scale in SCALES])
        axes.set(xlabel="noise over the recommended noise", ylabel="W1 to the true law", ylim=(0, None))
        figure.legend(loc="outside upper left", ncols=2)
    alt = "Distance to the true law against the noise added to the data, for a curve and a torus."
    return Picture("noise", figure, alt, f"{size.samples} samples; lines are means over seeds, bands their range.")


def cloud_picture(dim: int, one: Found) -> Picture:
    shown = {name: one.clouds[name][:, :2] for name in ("truth", "0 x", "2 x", "8 x")}
    alt = f"Points spread evenly over the true law and over fits at three noise levels, d = {dim}."
    return Picture(f"fits-{dim}", scatter_rows(shown), alt, "Noise in units of the recommended noise; first seed.")
