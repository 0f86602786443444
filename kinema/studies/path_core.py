"""Every path through one protocol: exact fields obey the continuity equation, and one recipe trains them all."""

import functools
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema import learn, models
from kinema.generate import (
    PATHS,
    CoupledPosterior,
    Denoising,
    Generator,
    Interpolating,
    MixturePosterior,
    Path,
    bind,
    sample,
)
from kinema.generate.fields import Moments
from kinema.generate.objective import capped
from kinema.generate.path.path import in_float64
from kinema.generate.solver import Grid, dpmpp, grids, heun
from kinema.report.charts import scatter_rows
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.one_of import OneOf
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify import sliced_wasserstein


class Size(NamedTuple):
    """How much a preset does: network, steps and rate of training, samples, points where exact fields are tested."""

    width: int
    depth: int
    steps: int
    rate: float
    samples: int
    points: int
    paths: tuple[str, ...]


SIZES = {
    "smoke": Size(8, 1, 4, 2e-2, 64, 8, ("linear", "interpolant")),
    "quick": Size(64, 2, 600, 2e-2, 2000, 64, tuple(PATHS)),
    "full": Size(256, 3, 20_000, 4e-3, 20_000, 512, tuple(PATHS)),
}
SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)
CENTRES = np.array([[-1.0, 0.5], [1.2, -0.3], [0.0, 1.0]])
TRAINED = 20_000
DEGRADED = 0.4  # standard deviation of what a known start adds to the data
WEIGHT = capped("residual", 100.0)


@study(
    "path-core",
    "Song et al. 2021; Albergo et al. 2023; Xu et al. 2023; Luo et al. 2023",
    "One affine form x = a x1 + b x0 + s z carries eleven published paths: exact fields obey the continuity equation "
    "on each to rounding, and one objective, one network and one sampling loop learn the same data on all of them.",
    title="Every path through one protocol",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    made = {name: learnt(name, size, seeds) for name in size.paths}
    floor = [resampled(size, jr.key(seed)) for seed in seeds]
    residuals = {name: continuity(family(name), size.points, seeds) for name in size.paths}
    over = {name: np.divide([one.distance for one in rows], floor) for name, rows in made.items()}
    return Evidence(
        metrics=[
            Metric("continuity residual, worst path", np.max(list(residuals.values()), 0), 1e-12),
            Metric(
                "sliced Wasserstein to the data, worst path",
                np.max([[one.distance for one in rows] for rows in made.values()], 0),
                0.15,
                baseline=floor,
                against="another draw of the data",
            ),
        ],
        figures=[
            Picture(
                "paths",
                scatter_rows({name: rows[0].road for name, rows in made.items()}, points=800),
                "Samples on the way from source to two moons, one row for each path, at five times",
                "Each row one path, from its source (t = 0) to data (t = 1), x scaled to unit variance. Bridge and "
                "mean-reverting begin at a degraded copy of each point, the interpolant at a ring, the mirror at data.",
            )
        ],
        tables=[
            Table(
                "Every path",
                ["path", "a, b, s at t = 1/2", "start", "continuity residual", "sliced Wasserstein over the floor"],
                [
                    [
                        name,
                        middle(PATHS[name]()),
                        START[PATHS[name]().origin],
                        max(residuals[name]),
                        Spread.of(over[name]),
                    ]
                    for name in size.paths
                ],
            )
        ],
        settings={
            "network": f"perceptron {size.width} x {size.depth} on every path, one objective",
            "training": f"{size.steps} steps, batch 256, rate {size.rate:g}",
            "sampling": "40 steps: dpmpp where log-SNR rises, else heun on the velocity, even in arcsin sqrt t",
            "residual": "(d log p / dt + v . grad log p + div v) / (1 + sum of their sizes), float64, exact mixtures",
        },
    )


START = {"none": "noise", "condition": "a known point", "endpoint": "a random point"}


class Learnt(NamedTuple):
    """Distance of the samples to new data, and samples at the times `SHOWN`."""

    distance: float
    road: dict[str, np.ndarray]


def family(name: str) -> OneOf:
    """A path as one of all that have its origin and law of noise."""
    made = {other: path() for other, path in PATHS.items()}
    kind = made[name].noise, made[name].origin
    alike = {other: path for other, path in made.items() if (path.noise, path.origin) == kind}
    return OneOf(tuple(alike.values()), list(alike).index(name))


def moons(key, n: int) -> Float[Array, "n 2"]:
    """Two interleaved half circles with normal noise of 0.06, centred, of about unit variance."""
    key_angle, key_noise = jr.split(key)
    angle, upper = jnp.pi * jr.uniform(key_angle, (n,)), jnp.arange(n) % 2 == 0
    x = jnp.where(upper, jnp.cos(angle), 1 - jnp.cos(angle)) - 0.5
    y = jnp.where(upper, jnp.sin(angle), 0.5 - jnp.sin(angle)) - 0.25
    return 1.3 * jnp.stack([x, y], -1) + 0.06 * jr.normal(key_noise, (n, 2))


def ring(key, n: int) -> Float[Array, "n 2"]:
    """Where the interpolant starts: a circle of radius 2."""
    angle = 2 * jnp.pi * jr.uniform(key, (n,))
    return 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


@eqx.filter_jit
def pairs(origin: str, n: int, key) -> dict[str, Float[Array, "n 2"]]:
    """Data and, where the path has any, their origins."""
    key_data, key_origin = jr.split(key)
    x1 = moons(key_data, n)
    if origin == "none":
        return {"x1": x1}
    near = x1 + DEGRADED * jr.normal(key_origin, x1.shape)
    return {"x1": x1, "x0": ring(key_origin, n) if origin == "endpoint" else near}


def sets(origin: str, size: Size, key) -> tuple[dict[str, Array], ...]:
    """Pairs to train on, to sample from and to compare with."""
    rows, (first, second) = pairs(origin, TRAINED + 2 * size.samples, key), (TRAINED, TRAINED + size.samples)
    return tuple(
        {end: x[part] for end, x in rows.items()} for part in (slice(first), slice(first, second), slice(second, None))
    )


def resampled(size: Size, key) -> float:
    """What two draws of the data are apart."""
    key_data, key_slices = jr.split(key)
    _, one, other = sets("none", size, key_data)
    return distance(one["x1"], other["x1"], key_slices)


def distance(x: Float[Array, "n 2"], y: Float[Array, "n 2"], key) -> float:
    """In the plane, 64 directions are many."""
    return float(sliced_wasserstein(x, y, key, projections=64))


def learnt(name: str, size: Size, seeds: tuple[int, ...]) -> list[Learnt]:
    """What one path comes to, for every seed."""
    path = PATHS[name]()
    grid = way(path)
    plan = dpmpp(path, grid, order=2) if rises(path) else heun(path, grid, extrapolates="velocity")
    a, b, s = in_float64(path.coefficients, SHOWN)
    units = (a**2 + b**2 + s**2) ** -0.5
    found = []
    for seed in seeds:
        key_data, key_fit, key_draw, key_slices = jr.split(jr.key(seed), 4)
        train, seen, fresh = sets(path.origin, size, key_data)
        fitted = trained(name, size, train, key_fit)
        rows = bind(plan, replace(fitted, path=path))
        start = None if path.has_source else seen["x1"]
        made = sample(fitted, rows, size.samples, key=key_draw, shape=(2,), x0=seen.get("x0"), start=start, save="all")
        road = {f"t = {t:g}": unit * np.asarray(made.path)[:, nearest(grid, t)] for t, unit in zip(SHOWN, units)}
        found.append(Learnt(distance(made.x, fresh["x1"], key_slices), road))
    return found


def trained(name: str, size: Size, data: dict[str, Array], key) -> Generator:
    """One objective and one network for all; a random endpoint has two outputs, and its own form of the objective."""
    path = family(name)
    two = path.origin == "endpoint"
    key_net, key_fit = jr.split(key)
    net = models.make(
        "mlp",
        shape=(2,),
        width=size.width,
        depth=size.depth,
        outputs=1 + two,
        joined=1 + (path.origin == "condition"),
        key=key_net,
    )
    return learn.fit(
        Generator(path, net, predicts=("transport", "noise") if two else "data"),
        Interpolating() if two else Denoising(weight=WEIGHT),
        data,
        steps=size.steps,
        batch_size=256,
        optimizer=learn.adam(size.rate, size.steps),
        key=key_fit,
        ema=0.99,
        progress=True,
    ).ema


def rises(path: Path) -> bool:
    """Whether log-SNR rises all the way, so that exponential solvers can follow it."""
    (levels,) = in_float64(path.log_snr, np.linspace(path.t_min, path.t_max, 33))
    return path.origin != "endpoint" and bool((np.diff(levels) > 0).all())


def way(path: Path) -> Grid:
    """Forty steps, even in log-SNR, or in the angle u of t = sin^2(pi u / 2) by which sqrt(t (1 - t)) is smooth."""
    if rises(path):
        return grids.log_snr(path, 40)
    return grids.from_times(path, path.t_min + (1 - path.t_min) * np.sin(np.linspace(0, np.pi / 2, 41)) ** 2)


def nearest(grid: Grid, t: float) -> int:
    return int(np.abs(grid.times[1:] - t).argmin())


def middle(path: Path) -> str:
    return ", ".join(f"{value[0]:.2f}" for value in in_float64(path.coefficients, [0.5]))


def continuity(path: Path, points: int, seeds: tuple[int, ...]) -> list[float]:
    """The largest residual of d log p / dt + v . grad log p + div v over random points, exact fields in float64."""
    with jax.enable_x64(True):
        normal = PATHS["linear"]()
        if path.origin == "endpoint":
            gen = CoupledPosterior(
                path, MixturePosterior(normal, CENTRES[:2], 0.2), MixturePosterior(normal, CENTRES, 0.1)
            )
        else:
            gen = MixturePosterior(path, CENTRES, 0.1 if path.noise.gaussian else 0.0)
        return [float(_worst_residual(gen, points, jr.key(seed))) for seed in seeds]


@eqx.filter_jit
def _worst_residual(gen, points: int, key):
    key_time, key_point = jr.split(key)
    t = jr.uniform(key_time, (points,), minval=0.05, maxval=0.95)
    moments = jax.vmap(lambda one: Moments.at(gen.path, one))(t)
    x = jr.normal(key_point, (points, 2)) * jnp.sqrt(moments.a**2 + moments.b**2 + moments.s**2)[:, None]
    origin = {"x0": jnp.array([0.3, -0.2])} if gen.path.origin == "condition" else {}
    density = functools.partial(gen.log_prob, **origin)

    def one(t, x):
        dt = jax.jvp(lambda now: density(now, x), (t,), (jnp.ones_like(t),))[1]
        flux = gen(t, x, **origin).velocity @ jax.grad(density, argnums=1)(t, x)
        divergence = jnp.trace(jax.jacfwd(lambda y: gen(t, y, **origin).velocity)(x))
        return jnp.abs(dt + flux + divergence) / (1 + jnp.abs(dt) + jnp.abs(flux) + jnp.abs(divergence))

    return jax.vmap(one)(t, x).max()
