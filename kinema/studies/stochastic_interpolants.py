"""Stochastic interpolants: a path between any two laws, and how much noise to move along it with."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema.generate import (
    CoupledPosterior,
    Interpolant,
    Linear,
    MixturePosterior,
    sample,
)
from kinema.generate.alike import bind_alike
from kinema.generate.fields import Heads
from kinema.generate.generator import AbstractGenerator
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.stochastic_interpolants_bridge import SHARED, bridge_picture, bridged, energy
from kinema.studies.stochastic_interpolants_digits import carried, carried_picture
from kinema.studies.stochastic_interpolants_sets import LEARNT_NOISES, between_sets, dynamics, learnt_picture
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify import kl_bound


class Size(NamedTuple):
    """How much a preset does: samples and steps where fields are exact; network, training and samples where learnt."""

    samples: int
    steps: int
    width: int
    training: int
    drawn: int
    bridge: tuple[int, int, int]  # steps, width, draws of the energy
    digits: tuple[int, int]  # width, steps


SIZES = {
    "smoke": Size(500, 10, 8, 4, 64, (4, 8, 500), (8, 4)),
    "quick": Size(30_000, 150, 64, 1000, 10_000, (1500, 32, 300_000), (192, 700)),
    "full": Size(1_000_000, 1000, 256, 20_000, 50_000, (10_000, 64, 4_000_000), (512, 20_000)),
}
NOISES = (0.1, 0.5, 1.0)
WAVES = (1, 4)
STARTS = MixturePosterior(Linear(), [[0.0]], 1.0)
ENDS = MixturePosterior(Linear(), [[-1.5], [1.5]], 0.25)
EXACT = CoupledPosterior(Interpolant(), STARTS, ENDS)


@study(
    "stochastic-interpolants",
    "Albergo, Boffi, Vanden-Eijnden, 2023, arXiv 2303.08797",
    "Between two laws noisy dynamics bound the divergence that errors of the drift can cause and the flow does not: "
    "with the same error of the velocity, the noisy samples stay below the bound and far below the flow. Optimised "
    "over the interpolant, the noisy dynamics become the Schrödinger bridge.",
    title="Stochastic interpolants",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    keys = [jr.key(seed) for seed in seeds]
    gaps = [divergences(size, key) for key in keys]
    learnt = [between_sets(size.width, size.training, size.drawn, key) for key in keys]
    apart = np.array([one.distances for one in learnt])
    bridges = [bridged(*size.bridge, key) for key in keys]
    moved = [carried(*size.digits, key) for key in keys]
    least, linear = energy(SHARED), energy(0.0)
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
            Metric(
                "optimised interpolant, energy off the Schrödinger bridge's",
                [abs(one.energy / least - 1) for one in bridges],
                0.01,
                baseline=linear / least - 1,
                against="linear interpolant",
            ),
            Metric(
                "digits carried by the flow, recognised as the class five above",
                [one.recognised["flow"] for one in moved],
                direction=">=",
                baseline=[one.recognised["real"] for one in moved],
                against="real digits held out",
            ),
        ],
        figures=[
            divergence_picture(gaps),
            learnt_picture(learnt[0]),
            bridge_picture(bridges),
            carried_picture(moved[0]),
        ],
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
            Table(
                "Between N(0, 1) and N(0, 0.2), volatility 0.6: energy, and error of the drift over its size",
                ["motion", "energy", "error"],
                [
                    ["linear interpolant, exact", linear, ""],
                    [
                        "optimised interpolant",
                        Spread.of([one.energy for one in bridges]),
                        Spread.of([one.error for one in bridges]),
                    ],
                    ["Schrödinger bridge, exact", least, ""],
                ],
            ),
            Table(
                "Held-out digits 0 to 4 carried to 5 to 9",
                ["digits", "recognised as five above", "energy distance to held-out 5 to 9"],
                [
                    [
                        {"start": "the starts", "real": "other real 5 to 9"}.get(name, f"carried, {name}"),
                        Spread.of([one.recognised[name] for one in moved]) if name != "start" else "",
                        Spread.of([one.distances[name] for one in moved]),
                    ]
                    for name in moved[0].distances
                ],
            ),
        ],
        settings={
            "exact part": f"N(0, 1) to two modes, linear, sqrt gamma, {size.steps} steps, {size.samples} samples",
            "error": "0.5 sqrt(2) sin(k x) added to the velocity",
            "learnt part": f"perceptron {size.width} x 3, {size.training} steps, batch 512, independent pairs",
            "optimised part": f"two perceptrons {size.bridge[1]} x 2, {size.bridge[0]} steps, batch 256",
            "digits": f"perceptron {size.digits[0]} x 3, {size.digits[1]} steps, pairs d to d + 5",
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


def divergences(size: Size, key) -> dict:
    """KL(true || found) by wave number and noise, and the bound on it."""
    key_starts, key_draw, key_bound = jr.split(key, 3)
    x0 = jax.vmap(STARTS.draw)(jr.split(key_starts, size.samples))
    plans = {f"e = {noise:g}": dynamics(EXACT.path, size.steps, noise) for noise in NOISES}
    plans["flow"] = dynamics(EXACT.path, max(size.steps // 3, 1), 0.0)  # of second order
    alike, found = bind_alike(plans, EXACT), {}
    for wave in WAVES:
        gen = Wrong(wave=jnp.asarray(float(wave)))
        for noise, rows in zip((*NOISES, 0.0), alike.values()):
            x = sample(gen, rows, size.samples, key=key_draw, shape=(1,), x0=x0, batch_size=15_000).x[:, 0]
            found[wave, noise] = histogram_divergence(np.asarray(x))
        found |= {(wave, "bound", noise): float(bound) for noise, bound in zip(NOISES, bounds(gen, key_bound))}
    return found


@eqx.filter_jit
def bounds(gen: Wrong, key) -> list[Array]:
    """The bound on the divergence for each of `NOISES`."""
    return [kl_bound(gen, EXACT, EXACT.draw, noise, key=key) for noise in NOISES]


def histogram_divergence(x: np.ndarray, bins: int = 120) -> float:
    """KL(true || found) over equal bins of [-5, 5], where empty bins count as half a sample."""
    edges = np.linspace(-5, 5, bins + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    truth = np.exp(-0.5 * (centres[:, None] - np.array([-1.5, 1.5])) ** 2 / 0.25).sum(-1)
    truth /= truth.sum()
    counts = np.maximum(np.histogram(x, edges)[0], 0.5)
    kept = truth > 0
    return float((truth[kept] * np.log(truth[kept] / (counts / counts.sum())[kept])).sum())


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
