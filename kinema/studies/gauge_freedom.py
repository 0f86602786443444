"""Gauge freedom: fields that sample alike and read differently, on a sphere in five dimensions."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema import learn, models
from kinema.generate import VE, Generator, edm, sample
from kinema.generate.generator import AbstractGenerator
from kinema.generate.solver import grids, heun
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify import data_dimension, flow_jacobian, intrinsic_dimension, sliced_wasserstein
from kinema.verify.conservative import Gauged


class Size(NamedTuple):
    """How much a preset does: points and flow steps (exact fields); width, steps and points (learnt ones); samples."""

    points: int
    flow: int
    width: int
    training: int
    learnt: int
    samples: int
    depth: int
    ways: tuple[str, ...]  # to read the dimension of learnt networks


READINGS = ("likelihood", "flow", "flipd")
SIZES = {
    "smoke": Size(2, 16, 8, 4, 2, 64, 1, ("likelihood",)),
    "quick": Size(16, 3000, 96, 3000, 64, 2000, 3, READINGS),
    "full": Size(64, 6000, 256, 30_000, 512, 10_000, 3, READINGS),
}
DIM, TRUE = 5, 2
PATH = VE(sigma_min=0.003, sigma_max=3.0)
NOISE, LEAST = 0.05, 0.005  # where one evaluation reads the dimension, and where flows end
LEARNT_NOISE = 0.1
TURN = np.array([[0, 1, 0, 2, -1], [-1, 0, 1, 0, 1], [0, -1, 0, 1, 0], [-2, 0, -1, 0, 1], [1, -1, 0, -1, 0]], float)
TURN /= np.linalg.norm(TURN, 2)
SHEAR = "score + 0.3 shear"


@study(
    "gauge-freedom",
    "Horvat and Pfister, 2024, arXiv 2402.03845",
    "A field that differs from the score by a gauge samples the same sphere S^2 in R^5, while the dimension read off "
    "its derivatives breaks; read off the likelihood it stays 2. A learnt conservative network is read rightly.",
    title="Gauge freedom",
    stage="verify",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    exact = {name: [read_exact(field(*how), size, jr.key(seed)) for seed in seeds] for name, how in FIELDS.items()}
    found = [learnt(size, jr.key(seed)) for seed in seeds]
    shear = exact[SHEAR]
    off = [max(abs(row.dimension["likelihood"] - TRUE) for row in rows) for rows in zip(*exact.values())]
    return Evidence(
        metrics=[
            Metric(
                "sliced Wasserstein of samples under shear over that of two draws of the sphere",
                [row.distance / row.floor for row in shear],
                1.5,
            ),
            Metric("FLIPD's error under shear", [abs(row.dimension["flipd"] - TRUE) for row in shear], 10.0, ">="),
            Metric(
                "share of points where the flow's Jacobian says 2, under shear",
                [row.right["flow"] for row in shear],
                0.5,
            ),
            Metric("error of the likelihood's dimension, worst field", off, 0.05),
            Metric(
                "share of points right, learnt potential, likelihood",
                [one["potential"].right["likelihood"] for one in found],
                0.9,
                ">=",
                baseline=[one["free"].right["likelihood"] for one in found],
                against="free network",
            ),
            Metric(
                "asymmetry of a learnt free network",
                [one["free"].asymmetry for one in found],
                baseline=[one["potential"].asymmetry for one in found],
                against="potential network",
            ),
        ],
        figures=[values_picture(size)],
        tables=[
            Table(
                "Exact fields on S^2 in R^5",
                ["field", "radius", "distance over floor", *READINGS, "flow right", "asymmetry"],
                [
                    [
                        name,
                        Spread.of([row.radius for row in rows]),
                        Spread.of([row.distance / row.floor for row in rows]),
                        *(Spread.of([row.dimension[way] for row in rows]) for way in READINGS),
                        Spread.of([row.right["flow"] for row in rows]),
                        Spread.of([row.asymmetry for row in rows]),
                    ]
                    for name, rows in exact.items()
                ],
            ),
            Table(
                f"Learnt networks, read at noise {LEARNT_NOISE}",
                ["network", *size.ways, *(f"{way} right" for way in size.ways), "asymmetry", "TwoNN of samples"],
                [
                    [
                        name,
                        *(Spread.of([one[name].dimension[way] for one in found]) for way in size.ways),
                        *(Spread.of([one[name].right[way] for one in found]) for way in size.ways),
                        Spread.of([one[name].asymmetry for one in found]),
                        Spread.of([one[name].neighbours for one in found]),
                    ]
                    for name in found[0]
                ],
            ),
        ],
        settings={
            "exact": f"noise 3 to {LEAST}, {size.flow} Runge-Kutta steps, {size.points} points, FLIPD at {NOISE}",
            "shear": "0.3 sigma^-2.75 z (-y, x, 0, 0, 0); rotation: 3 K score, K antisymmetric of norm 1",
            "learnt": f"perceptron {size.width} x {size.depth} and gradient of one, {size.training} steps, batch 256",
        },
    )


class SphereScore(AbstractGenerator):
    """The exact score of the uniform law on the unit sphere S^2 in the first three of five coordinates."""

    path: VE = PATH
    predicts: str = eqx.field(static=True, default="score")
    sigma_data: float = eqx.field(static=True, default=0.58)

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x: Float[Array, " 5"], cond=None, x0=None) -> Float[Array, " 5"]:
        s = self.path.coefficients(t)[2]
        radius = jnp.sqrt(jnp.sum(x[:3] ** 2))
        k = radius / s**2
        coth = 1 - 2 * jnp.exp(-2 * k) / jnp.expm1(-2 * k)  # no overflow
        pull = coth / s**2 - 1 / radius - k
        return jnp.concatenate([pull * x[:3] / radius, -x[3:] / s**2])


class Gauge(eqx.Module):
    """turn K score + shear sigma^-2.75 z (-y, x, 0, 0, 0): numbers as arrays, so that all fields share programs."""

    turn: Array
    shear: Array

    def __call__(self, t, x: Float[Array, " 5"]) -> Float[Array, " 5"]:
        s = PATH.coefficients(t)[2]
        along = s**-2.75 * x[2] * jnp.array([-x[1], x[0], 0.0, 0.0, 0.0])
        return self.turn * jnp.asarray(TURN, x.dtype) @ EXACT.raw(t, x) + self.shear * along


EXACT = SphereScore()


def field(turn: float, shear: float) -> Gauged:
    return Gauged(EXACT, Gauge(jnp.asarray(turn), jnp.asarray(shear)))


FIELDS = {"score": (0.0, 0.0), "score + 3 K score": (3.0, 0.0), SHEAR: (0.0, 0.3)}


def sphere(key, n: int) -> Float[Array, "n 5"]:
    x = jr.normal(key, (n, 3))
    return jnp.pad(x / jnp.linalg.norm(x, axis=1, keepdims=True), ((0, 0), (0, DIM - 3)))


class Reading(NamedTuple):
    """Samples against the sphere, and dimensions read at its points."""

    dimension: dict[str, float]
    right: dict[str, float]
    asymmetry: float
    radius: float = 0.0
    distance: float = 0.0
    floor: float = 0.0
    neighbours: float = 0.0


def read_exact(gen: AbstractGenerator, size: Size, key) -> Reading:
    key_points, key_start, key_truth, key_other, key_slices, key_read = jr.split(key, 6)
    x = sphere(key_points, size.points)
    flow = intrinsic_dimension(gen, x, method="flow", noise=LEAST, steps=size.flow, key=key_read)
    one = {way: intrinsic_dimension(gen, x, method=way, noise=NOISE, key=key_read) for way in ("likelihood", "flipd")}
    starts = 3.0 * jr.normal(key_start, (size.samples, DIM)) + sphere(key_start, size.samples)
    found = followed(gen, starts, size.flow // 8)
    truth, other = sphere(key_truth, size.samples), sphere(key_other, size.samples)
    dimension = {way: float(report.dimension.mean()) for way, report in {**one, "flow": flow}.items()}
    return Reading(
        dimension,
        {"flow": float((flow.dimension == TRUE).mean())},
        asymmetry=float(one["flipd"].asymmetry),
        radius=float(jnp.linalg.norm(found[:, :3], axis=1).mean()),
        distance=float(sliced_wasserstein(found, truth, key_slices)),
        floor=float(sliced_wasserstein(other, truth, key_slices)),
    )


def followed(gen: AbstractGenerator, starts, steps: int):
    """The flow from noise 3 down to 0.02."""
    grid = grids.log_snr(PATH, steps, high=-float(np.log(0.02)), clean=False)
    plan = heun(PATH, grid)
    return sample(gen, plan, len(starts), key=jr.key(0), shape=(DIM,), start=starts).x


def learnt(size: Size, key) -> dict[str, Reading]:
    """A free and a potential network on one data set."""
    key_data, key_points, key_net, key_fit, key_read, key_draw = jr.split(key, 6)
    data, x = sphere(key_data, 20_000), sphere(key_points, size.learnt)
    nets = {
        "free": models.make("mlp", shape=(DIM,), width=size.width, depth=size.depth, key=key_net),
        "potential": models.PotentialMLP((DIM,), width=size.width, depth=size.depth, key=key_net),
    }
    readings = {}
    for name, net in nets.items():
        run = learn.fit(
            Generator(PATH, net, predicts="residual", sigma_data=0.45),
            edm(),
            data,
            optimizer=learn.adam(2e-3, size.training),
            steps=size.training,
            batch_size=256,
            key=key_fit,
            ema=0.99,
            chunk=min(size.training, 500),
            progress=True,
        )
        readings[name] = read_learnt(run.ema, x, size, key_read, key_draw)
    return readings


def read_learnt(gen: Generator, x, size: Size, key_read, key_draw) -> Reading:
    reports = {
        way: intrinsic_dimension(gen, x, method=way, noise=LEARNT_NOISE, steps=min(200, size.flow), key=key_read)
        for way in size.ways
    }
    grid = grids.karras(PATH, 30, low=None, high=-float(np.log(0.02)), clean=True)
    drawn = sample(gen, heun(PATH, grid), size.samples, key=key_draw, shape=(DIM,)).x
    right = {way: float((jnp.round(report.dimension) == TRUE).mean()) for way, report in reports.items()}
    return Reading(
        {way: float(report.dimension.mean()) for way, report in reports.items()},
        right,
        asymmetry=float(reports["likelihood"].asymmetry),
        neighbours=float(data_dimension(drawn).dimension),
    )


def values_picture(size: Size) -> Picture:
    """Singular values of the flow's Jacobian against the noise, from one start."""
    start = 3.0 * jr.normal(jr.key(1), (DIM,)) + sphere(jr.key(2), 1)[0]
    levels = 8 if size.flow < 100 else 40
    with house(4.8, 2.6, ncols=2, sharey=True) as (figure, axes):
        for ax, name in zip(axes, ("score", SHEAR)):
            steps = size.flow // levels * levels
            found = flow_jacobian(field(*FIELDS[name]), start, noise=(3.0, LEAST), steps=steps, levels=levels)
            ax.plot(found.noise, found.singular_values)
            ax.set(xscale="log", yscale="log", xlabel="noise", title=name)
            ax.invert_xaxis()
        axes[0].set(ylabel="singular values")
    return Picture(
        "values",
        figure,
        "Singular values of the flow's Jacobian against the noise level, for the exact score and with a shear added",
        "Left: two values come to rest, the dimension of the sphere. Right: the same samples, and no such picture.",
    )
