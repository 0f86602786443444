"""Stochastic interpolants: a path between any two laws, and how much noise to move along it with."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema import learn, models
from kinema.generate import (
    CoupledPosterior,
    Generator,
    Interpolant,
    Interpolating,
    Linear,
    MixturePosterior,
    sample,
)
from kinema.generate.fields import Heads
from kinema.generate.generator import AbstractGenerator
from kinema.generate.solver import Plan, euler_maruyama, grids, heun
from kinema.report.charts import house, scatter_rows
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify import kl_bound, sliced_wasserstein


class Size(NamedTuple):
    """How much a preset does: samples and steps where fields are exact; network, training and samples where learnt."""

    samples: int
    steps: int
    width: int
    training: int
    drawn: int


SIZES = {
    "smoke": Size(500, 10, 8, 4, 64),
    "quick": Size(100_000, 300, 64, 1000, 20_000),
    "full": Size(1_000_000, 1000, 256, 20_000, 50_000),
}
NOISES = (0.1, 0.5, 1.0)
WAVES = (1, 4)
LEARNT_NOISES = (0.0, 0.1, 0.5, 2.0)
STARTS = MixturePosterior(Linear(), [[0.0]], 1.0)
ENDS = MixturePosterior(Linear(), [[-1.5], [1.5]], 0.25)
EXACT = CoupledPosterior(Interpolant(), STARTS, ENDS)


@study(
    "stochastic-interpolants",
    "Albergo, Boffi, Vanden-Eijnden, 2023, arXiv 2303.08797",
    "Between two laws noisy dynamics bound the divergence that errors of the drift can cause and the flow does not: "
    "with the same error of the velocity, the noisy samples stay below the bound and far below the flow.",
    title="Stochastic interpolants",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    keys = [jr.key(seed) for seed in seeds]
    gaps = [divergences(size, key) for key in keys]
    learnt = [between_sets(size, key) for key in keys]
    apart = np.array([one.distances for one in learnt])
    over = [max(gap[k, e] / gap[k, "bound", e] for k in WAVES for e in NOISES) for gap in gaps]
    return Evidence(
        metrics=[
            Metric("KL of noisy dynamics over its bound, worst case", over, 1.0),
            Metric(
                "KL of the flow over that at e = 1, wave number 4",
                [gap[4, 0.0] / gap[4, 1.0] for gap in gaps],
                30.0,
                ">=",
            ),
            Metric(
                "sliced Wasserstein, learnt, best noise over flow",
                apart[:, 1:].min(1) / apart[:, 0],
                0.9,
            ),
            Metric("most noise of the learnt over its best", apart[:, -1] / apart[:, 1:].min(1), 1.0, ">="),
        ],
        figures=[divergence_picture(gaps), learnt_picture(learnt[0])],
        tables=[
            Table(
                "KL(true || found), nats, with an error of the velocity of mean square 1/4",
                ["wave number", "flow", *(f"e = {e:g}" for e in NOISES), *(f"bound, e = {e:g}" for e in NOISES)],
                [
                    [
                        str(k),
                        *(Spread.of([gap[k, e] for gap in gaps]) for e in (0.0, *NOISES)),
                        *(Spread.of([gap[k, "bound", e] for gap in gaps]) for e in NOISES),
                    ]
                    for k in WAVES
                ],
            ),
            Table(
                "Sliced Wasserstein distance of a learnt map, ring of eight to checkerboard",
                ["noise e", "distance"],
                [[f"{e:g}", Spread.of(apart[:, i])] for i, e in enumerate(LEARNT_NOISES)]
                + [["another draw", Spread.of([one.floor for one in learnt])]],
            ),
        ],
        settings={
            "exact part": f"N(0, 1) to two modes, linear, sqrt gamma, {size.steps} steps, {size.samples} samples",
            "error": "0.5 sqrt(2) sin(k x) added to the velocity",
            "learnt part": f"perceptron {size.width} x 3, {size.training} steps, batch 512, independent pairs",
        },
    )


class Wrong(AbstractGenerator):
    """The exact generator with an error in its velocity."""

    wave: Float[Array, ""]
    path: Interpolant = EXACT.path
    predicts: tuple[str, str] = eqx.field(static=True, default=("transport", "noise"))
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x, cond=None, x0=None) -> Heads:
        transport, noise = EXACT.raw(t, x)
        return Heads(transport + 0.5 * jnp.sqrt(2.0) * jnp.sin(self.wave * x), noise)


def dynamics(path: Interpolant, steps: int, noise: float) -> Plan:
    """The flow, or dynamics of volatility sqrt(2 noise)."""
    grid = grids.uniform_time(path, steps)
    if noise == 0:
        return heun(path, grid, extrapolates="velocity")
    return euler_maruyama(path, grid, noise_level=lambda t: (2 * noise) ** 0.5)


def divergences(size: Size, key) -> dict:
    """KL(true || found) by wave number and noise, and the bound on it."""
    key_starts, key_draw, key_bound = jr.split(key, 3)
    x0 = jax.vmap(STARTS.draw)(jr.split(key_starts, size.samples))
    found = {}
    for wave in WAVES:
        gen = Wrong(wave=jnp.asarray(float(wave)))
        for noise in (0.0, *NOISES):
            plan = dynamics(EXACT.path, size.steps, noise)
            x = sample(gen, plan, size.samples, key=key_draw, shape=(1,), x0=x0, batch_size=20_000).x[:, 0]
            found[wave, noise] = histogram_divergence(np.asarray(x))
        for noise in NOISES:
            found[wave, "bound", noise] = float(kl_bound(gen, EXACT, EXACT.draw, noise, key=key_bound))
    return found


def histogram_divergence(x: np.ndarray, bins: int = 120) -> float:
    """KL(true || found) over equal bins of [-5, 5], where empty bins count as half a sample."""
    edges = np.linspace(-5, 5, bins + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    truth = np.exp(-0.5 * (centres[:, None] - np.array([-1.5, 1.5])) ** 2 / 0.25).sum(-1)
    truth /= truth.sum()
    counts = np.maximum(np.histogram(x, edges)[0], 0.5)
    kept = truth > 0
    return float((truth[kept] * np.log(truth[kept] / (counts / counts.sum())[kept])).sum())


class Between(NamedTuple):
    """Distances by noise, the floor of a second draw, and clouds to look at."""

    distances: list[float]
    floor: float
    clouds: dict[str, Array]


def eight(key, n: int) -> Float[Array, "n 2"]:
    """Eight normal laws of deviation 0.15 on a circle of radius 2."""
    key_which, key_noise = jr.split(key)
    angle = jr.randint(key_which, (n,), 0, 8) * (jnp.pi / 4)
    return 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) + 0.15 * jr.normal(key_noise, (n, 2))


def checkerboard(key, n: int) -> Float[Array, "n 2"]:
    """Uniform on the black squares of a board of 4 x 4 over [-2, 2]^2."""
    key_square, key_place = jr.split(key)
    square = jr.randint(key_square, (n,), 0, 8)
    row = square // 2
    corner = jnp.stack([2 * (square % 2) + row % 2, row], -1) - 2.0
    return corner + jr.uniform(key_place, (n, 2))


def between_sets(size: Size, key) -> Between:
    key_data, key_net, key_fit, key_test, key_draw = jr.split(key, 5)
    key_x0, key_x1 = jr.split(key_data)
    path = Interpolant()
    net = models.make("mlp", shape=(2,), width=size.width, depth=3, outputs=2, key=key_net)
    fitted = learn.fit(
        Generator(path, net, predicts=("transport", "noise")),
        Interpolating(),
        {"x0": eight(key_x0, 50_000), "x1": checkerboard(key_x1, 50_000)},
        steps=size.training,
        batch_size=512,
        optimizer=learn.adam(3e-3, size.training),
        key=key_fit,
        ema=0.995,
        progress=True,
    ).ema
    key_starts, key_truth, key_other, key_slices = jr.split(key_test, 4)
    x0, truth, other = (
        f(k, size.drawn) for f, k in ((eight, key_starts), (checkerboard, key_truth), (checkerboard, key_other))
    )
    drawn = {
        noise: sample(fitted, dynamics(path, 100, noise), size.drawn, key=key_draw, shape=(2,), x0=x0).x
        for noise in LEARNT_NOISES
    }
    return Between(
        [float(sliced_wasserstein(x, truth, key_slices)) for x in drawn.values()],
        float(sliced_wasserstein(other, truth, key_slices)),
        {"start": x0, "flow": drawn[0.0], "e = 0.5": drawn[0.5], "e = 2": drawn[2.0], "data": truth},
    )


def divergence_picture(gaps: list[dict]) -> Picture:
    with house() as (figure, axes):
        for i, k in enumerate(WAVES):
            mean = [np.mean([gap[k, e] for gap in gaps]) for e in NOISES]
            bound = [np.mean([gap[k, "bound", e] for gap in gaps]) for e in NOISES]
            flow = np.mean([gap[k, 0.0] for gap in gaps])
            axes.plot(NOISES, mean, "o-", color=f"C{i}", label=f"noisy, wave number {k}")
            axes.axhline(flow, color=f"C{i}", ls=":", label=f"flow, wave number {k}")
        axes.plot(NOISES, bound, "--", color="grey", label="bound")
        axes.set(xscale="log", yscale="log", xlabel="noise e", ylabel="KL(true || found), nats")
        axes.legend(fontsize=7)
    return Picture(
        "divergence",
        figure,
        "Kullback-Leibler divergence against the noise of the dynamics, with its bound and that of the flow",
        "The same error of the velocity hurts the flow most; noise keeps the divergence under its bound.",
    )


def learnt_picture(made: Between) -> Picture:
    return Picture(
        "learnt",
        scatter_rows({name: np.asarray(x) for name, x in made.clouds.items()}, points=2000),
        "Eight clusters carried to a checkerboard by a learnt map: start, flow, two noises, data",
        "One network with two outputs; the noise is chosen when sampling.",
    )
