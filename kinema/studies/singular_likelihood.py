"""Maximum likelihood on a curve and a sheet: how much noise to add to data that have no density.

Fits are judged by points spread evenly over their latent, against as many of the truth, so that the distance has
no sampling error of its own; against estimates that can only be sampled, all are judged by samples.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from kinema import learn
from kinema.errors import require
from kinema.generate import InstanceNoise, LatentModel, recommended_noise
from kinema.generate.codec import Codec
from kinema.generate.latent import Uniform, with_codec
from kinema.generate.objective.latent_likelihood import LatentLikelihood
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.singular_likelihood_pictures import fits_picture, noise_picture
from kinema.studies.study import study
from kinema.tables import Spread, Table

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # noise over the recommended one
NARROW, WIDE = 0.02, 0.5  # first s of a fit; wide is the default of LatentModel
WIDTH, NODES, BATCH = {1: 32, 2: 64}, {1: 256, 2: 20}, {1: 200, 2: 100}  # by dimension; nodes along each axis
RATE, AVERAGING = 5e-3, 0.99
OURS, KDE, MIXTURE, TRUTH = "latent model", "kernel density", "Gaussian mixture", "the true law"


class Size(NamedTuple):
    """Samples, training steps on the curve and the sheet, points that judge a law, components of the mixtures."""

    samples: int
    steps: dict[int, int]
    points: int = 1024
    mixtures: tuple[int, ...] = (16, 32, 64)


SIZES = {
    "smoke": Size(300, {1: 20, 2: 10}, 144, (2, 4)),
    "quick": Size(2000, {1: 4000, 2: 3500}),
    "full": Size(2000, {1: 20_000, 2: 20_000}),
}


class Found(NamedTuple):
    """W1 and s by noise from a narrow start, in `SCALES`; W1 unperturbed and at the recommended noise from a wide one;
    W1 of samples by estimate; points `(scales + 1, points, D)`, those of the truth last."""

    narrow: np.ndarray
    stds: np.ndarray
    wide: np.ndarray
    sampled: dict[str, float]
    clouds: np.ndarray


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
    found = {dim: [measure(dim, size, jr.key(seed)) for seed in seeds] for dim in WIDTH}
    noises = {dim: np.array(SCALES) * recommended_noise(size.samples, 2, dim) for dim in WIDTH}
    return Evidence(
        metrics=[metric for dim, rows in found.items() for metric in judged(dim, rows)],
        figures=[
            noise_picture(noises, found, SCALES.index(1.0), size.samples),
            fits_picture(noises, {dim: rows[0] for dim, rows in found.items()}, SCALES.index(1.0)),
        ],
        tables=[*(noise_table(dim, noises[dim], rows) for dim, rows in found.items()), peer_table(found, size)],
        settings={
            "data": f"{size.samples} samples of a curve in the plane (d = 1), of a sheet in space (d = 2)",
            "points that judge a law": size.points,
            "network": "tanh perceptron, 2 x 32 (d = 1), 2 x 64 (d = 2)",
            "steps": list(size.steps.values()),
            "batch": list(BATCH.values()),
            "nodes an axis": list(NODES.values()),
            "first s": {"narrow": NARROW, "wide": WIDE},
            "smoothness": 2,
            "kernel density": "bandwidth by three-fold likelihood",
            "Gaussian mixture": f"full covariances, {size.mixtures} components, chosen by BIC",
        },
    )


def judged(dim: int, rows: list[Found]) -> list[Metric]:
    apart = np.array([one.narrow for one in rows])
    best, level = int(apart.mean(0).argmin()), SCALES.index(1.0)
    sampled = {name: [one.sampled[name] for one in rows] for name in rows[0].sampled}
    return [
        Metric(f"W1 unperturbed over best noise, d = {dim}", apart[:, 0] / apart[:, best], 1.5, ">="),
        Metric(f"W1 at most noise over best noise, d = {dim}", apart[:, -1] / apart[:, best], 1.5, ">="),
        Metric(f"W1 at recommended noise over best noise, d = {dim}", apart[:, level] / apart[:, best], 1.3),
        Metric(f"best noise over recommended, d = {dim}", SCALES[best]),
        *(
            Metric(f"W1 of samples over {name}, d = {dim}", np.divide(sampled[OURS], sampled[name]), 1.0)
            for name in (KDE, MIXTURE)
        ),
    ]


def truth(z: Float[Array, " d"]) -> Float[Array, " D"]:
    """A curve of three lobes, or a sheet with waves, crossed at uneven speed as z goes through the unit cube."""
    uneven = z + 0.12 * jnp.sin(2 * jnp.pi * z)
    if z.size == 1:
        angle = 2 * jnp.pi * uneven[0]
        radius = 1 + 0.35 * jnp.cos(3 * angle)
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    u, v = 2 * uneven - 1
    return jnp.stack([u, v, 0.6 * jnp.cos(jnp.pi * u) * jnp.cos(jnp.pi * v)])


def evenly(count: int, dim: int) -> Float[Array, "points d"]:
    """Points of the unit cube, one in the middle of every one of `count` cells."""
    return Uniform(dim).nodes(round(count ** (1 / dim)), jnp.full(dim, 0.5))[0]


def wasserstein(x: Any, y: Any) -> float:
    """W1 of two sets of equally many points, by the best assignment."""
    cost = cdist(x, y)
    return float(cost[linear_sum_assignment(cost)].mean())


def measure(dim: int, size: Size, key) -> Found:
    key_data, key_net, key_fit, key_draw, key_true, key_peers = jr.split(jr.fold_in(key, dim), 6)
    data, level = law(truth, jr.uniform(key_data, (size.samples, dim))), recommended_noise(size.samples, 2, dim)
    scales = (*SCALES, 0.0, 1.0)
    starts = [NARROW] * len(SCALES) + [WIDE] * 2
    models = fit_levels(data, level * jnp.array(scales), jnp.array(starts), key_net, key_fit, size.steps[dim])
    even = evenly(size.points, dim)
    true, clouds = np.asarray(law(truth, even)), np.asarray(points(models, even))
    apart = np.array([wasserstein(cloud, true) for cloud in clouds])

    drawn = points(models, jr.uniform(key_draw, (size.points, dim)))
    samples = {OURS: drawn[scales.index(1.0)], TRUTH: law(truth, jr.uniform(key_true, (size.points, dim)))}
    samples |= peers(np.asarray(data), size, int(jr.randint(key_peers, (), 0, 2**31 - 1)))
    return Found(
        apart[:-2],
        np.asarray(eqx.filter_vmap(lambda model: model.std)(models))[:-2],
        apart[-2:],
        {name: wasserstein(cloud, true) for name, cloud in samples.items()},
        np.concatenate([clouds[:-2], true[None]]),
    )


@eqx.filter_jit
def fit_levels(data, noises: Float[Array, " k"], starts: Float[Array, " k"], key_net, key_fit, steps: int):
    """One fit for each noise and first s, all from the same weights and by the same batches; models stacked `(k,)`."""
    samples, size = data.shape
    dim = size - 1
    codec = Codec(data.mean(0), jnp.full(size, jnp.sqrt(data.var(0).mean())))
    rows = jax.vmap(codec.encode)(data)
    optimizer = learn.adam(RATE, steps, warmup=0.0)

    def fit(noise, start):
        net = eqx.nn.MLP(dim, size, WIDTH[dim], 2, jnp.tanh, key=key_net)
        params, static = learn.Trainable().split(LatentModel(net, Uniform(dim), jnp.log(start)))
        source = learn.BackPropagation(LatentLikelihood(InstanceNoise(noise), NODES[dim]))

        def step(state, key):
            batch = rows[jr.randint(key, (BATCH[dim],), 0, samples)]
            return learn.advance(state, static, batch, key_fit, source=source, optimizer=optimizer, ema=AVERAGING)[
                0
            ], None

        state = learn.begin(optimizer, params, AVERAGING)
        return with_codec(eqx.combine(jax.lax.scan(step, state, jr.split(key_fit, steps))[0].ema, static), codec)

    return eqx.filter_vmap(fit)(noises, starts)


@eqx.filter_jit
def law(push, z: Float[Array, "points d"]) -> Float[Array, "points D"]:
    return jax.vmap(push)(z)


@eqx.filter_jit
def points(models: LatentModel, z: Float[Array, "points d"]) -> Float[Array, "models points D"]:
    """Where the fitted laws, without noise, put each z."""
    return eqx.filter_vmap(lambda model: jax.vmap(lambda one: model.decode(model.generator(one)))(z))(models)


def peers(data: np.ndarray, size: Size, seed: int) -> dict[str, np.ndarray]:
    """Samples of scikit-learn's estimates."""
    neighbors, mixture = require("sklearn.neighbors", "digits"), require("sklearn.mixture", "digits")
    search = require("sklearn.model_selection", "digits").GridSearchCV
    widths = {"bandwidth": np.geomspace(0.005, 0.5, 8)}
    kernel = search(neighbors.KernelDensity(), widths, cv=3).fit(data).best_estimator_
    mixtures = [mixture.GaussianMixture(k, random_state=seed).fit(data) for k in size.mixtures]
    best = min(mixtures, key=lambda one: one.bic(data))
    return {KDE: kernel.sample(size.points, random_state=seed), MIXTURE: best.sample(size.points)[0]}


def noise_table(dim: int, noises: np.ndarray, rows: list[Found]) -> Table:
    level = SCALES.index(1.0)
    wide = {0: [one.wide[0] for one in rows], level: [one.wide[1] for one in rows]}
    lines = [
        (
            f"{noise:.3f}" + " (recommended)" * (i == level),
            Spread.of(one.narrow[i] for one in rows),
            Spread.of(one.stds[i] for one in rows),
            Spread.of(wide[i]) if i in wide else None,
        )
        for i, noise in enumerate(noises)
    ]
    columns = ("noise, standard deviations of the data", "W1, narrow start", "s found", "W1, wide start")
    return Table(f"W1 to the true law by noise, d = {dim}", columns, lines)


def peer_table(found: dict[int, list[Found]], size: Size) -> Table:
    names = list(next(iter(found.values()))[0].sampled)
    lines = [(name, *(Spread.of(one.sampled[name] for one in rows) for rows in found.values())) for name in names]
    return Table(
        f"W1 of {size.points} samples to the true law", ("samples of", *(f"d = {dim}" for dim in found)), lines
    )
