"""Score SDEs: one continuous description, many samplers, exact likelihoods, conditions without retraining."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema.generate import VE, VP, MixturePosterior, SubVP, log_prob, sample
from kinema.generate.fields import convert
from kinema.generate.generator import moments_in_float64
from kinema.generate.solver import Grid, Plan, ancestral, euler, grids, predictor_corrector
from kinema.generate.solver.plan import Draft
from kinema.report.charts import error_against_nfe
from kinema.report.picture import Picture
from kinema.steer import PathWeighted, condition_on_mask, steer
from kinema.studies import score_sde_digits as learnt
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table
from kinema.verify import sliced_wasserstein


class Size(NamedTuple):
    """How much a preset does. `width`, `steps`: the networks whose likelihood is measured; `judged`: test digits."""

    samples: int
    particles: int
    width: int
    steps: int
    judged: int
    divergence: str
    picture_steps: int
    pictures: int


SIZES = {
    "smoke": Size(200, 64, 16, 10, 8, "hutchinson", 10, 2),
    "quick": Size(4000, 2048, 128, 3000, 297, "hutchinson", 1500, 20),
    "full": Size(20000, 8192, 256, 20000, 100, "exact", 20000, 100),
}
CALLS, SNR = (20, 50, 100, 200), 0.3
COMPONENTS, DIM, STD, APART = 10, 8, 0.1, 7.0
CORRELATION, KNOWN = 0.9, 1.5
GUIDANCE = 4.0


@study(
    "score-sde",
    "Song et al., 2021, arXiv 2011.13456",
    "With the exact score a corrector removes most of what the probability-flow predictor leaves at equal calls, alone "
    "it fails and below 50 calls it does not pay; likelihoods are exact, and sub-VP learns better ones than VP.",
    title="Score-based modelling through SDEs",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    corrected = [against_corrector(size, jr.key(seed)) for seed in seeds]
    exact = [likelihood_error(jr.key(seed)) for seed in seeds]
    bias = [conditional_bias(size, jr.key(seed)) for seed in seeds]
    train, test = learnt.digits()
    bits = [likelihoods(size, train, test, jr.key(seed)) for seed in seeds]
    pictures, recognised, real = conditions(size, train, test, jr.key(seeds[0]))

    def gap(name, calls):
        return [abs(one[name, calls].excess) for one in corrected]

    def distance(name, calls):
        return [one[name, calls].distance for one in corrected]

    flow, both, floor = (
        "probability flow",
        "probability flow + corrector",
        [one["truth", 0].distance for one in corrected],
    )
    low, high = CALLS[0], CALLS[-1]
    return Evidence(
        metrics=[
            Metric(
                "density gap at 100 calls, predictor-corrector",
                gap(both, 100),
                0.25,
                baseline=gap(flow, 100),
                unit="nats",
                against="predictor alone",
            ),
            Metric(
                f"sliced Wasserstein at {high} calls, predictor-corrector over predictor",
                np.divide(distance(both, high), distance(flow, high)),
                1.0,
            ),
            Metric(
                f"sliced Wasserstein at {low} calls, predictor-corrector over predictor",
                np.divide(distance(both, low), distance(flow, low)),
                1.0,
                ">=",
            ),
            Metric(
                f"sliced Wasserstein at {high} calls, corrector alone",
                distance("corrector alone", high),
                1.0,
                ">=",
                baseline=floor,
                against="two draws of the truth",
            ),
            Metric("error of exact log-likelihood, worst of three paths", exact, 1e-3, unit="nats"),
            Metric("bits/dim, VP minus sub-VP", [np.mean(one["vp"] - one["sub-vp"]) for one in bits], 0.02, ">="),
            Metric(
                "bits/dim, sub-VP",
                [one["sub-vp"].mean() for one in bits],
                baseline=[one["vp"].mean() for one in bits],
                against="VP",
            ),
            Metric(
                "error of a conditional mean, path weights",
                [one[1] for one in bias],
                0.05,
                baseline=[one[0] for one in bias],
                against="replacement",
            ),
            Metric("guided digits recognised", recognised, 0.8, ">=", baseline=real, against="real digits"),
        ],
        figures=[corrector_picture(corrected), *pictures],
        tables=[corrector_table(corrected)],
        settings={
            "corrector": f"annealed Langevin, snr {SNR}",
            "networks": f"perceptron {size.width} x 3, {size.steps} steps, batch 256",
            "likelihood": f"tsit5 at 1e-5 from u = 0.001, {size.divergence} divergence, {size.judged} digits",
            "bits of the uniform law": float(np.log2(learnt.LEVELS)),
            "standard error of the paired difference": [paired_error(one) for one in bits],
            "pictures": f"VP, {size.picture_steps} steps; guidance {GUIDANCE:g}",
        },
    )


class Quality(NamedTuple):
    """Samples against the truth: excess of the mean negative log density (nats), sliced Wasserstein distance."""

    excess: float
    distance: float


def against_corrector(size: Size, key) -> dict[tuple[str, int], Quality]:
    """Predictors alone and with a corrector at equal calls, on a mixture whose score is exact.

    `sigma_max` is the largest distance between two means, as published.
    """
    key_means, key_truth, key_other, key_draw, key_slices = jr.split(key, 5)
    means = np.asarray(jr.normal(key_means, (COMPONENTS, DIM)), np.float64)
    means *= APART / np.linalg.norm(means[:, None] - means, axis=-1).max()
    path = VE(sigma_max=APART)
    oracle = MixturePosterior(path, means, STD**2)
    truth, other = (jax.vmap(oracle.draw)(jr.split(k, size.samples)) for k in (key_truth, key_other))

    def quality(x) -> Quality:
        return Quality(float(surprise(oracle, x) - entropy), float(sliced_wasserstein(x, truth, key_slices)))

    entropy = surprise(oracle, truth)
    found = {("truth", 0): quality(other)}
    for calls in CALLS:
        plans = {name: build(path, grids.uniform_time(path, calls)) for name, build in PREDICTORS.items()}
        half = {name: build(path, grids.uniform_time(path, calls // 2)) for name, build in PREDICTORS.items()}
        plans |= {f"{name} + corrector": predictor_corrector(path, plan, snr=SNR) for name, plan in half.items()}
        if calls == CALLS[-1]:
            plans["corrector alone"] = langevin(path, grids.uniform_time(path, calls))
        for name, plan in plans.items():
            found[name, calls] = quality(sample(oracle, plan, size.samples, key=key_draw, shape=(DIM,)).x)
    return found


@eqx.filter_jit
def surprise(oracle: MixturePosterior, x: Float[Array, "n d"]) -> Float[Array, ""]:
    """Mean negative log density of samples under the data law itself, which the path's last noise has not blurred."""
    data = eqx.tree_at(lambda m: m.path, oracle, VE(sigma_min=1e-4, sigma_max=APART))
    return -jax.vmap(lambda one: data.log_prob(1.0, one))(x).mean()


def probability_flow(path, grid: Grid) -> Plan:
    """The ODE discretised as the reverse diffusion is: x' = (2 - q) x - (v^2 / 2 s) e. The published predictor."""
    draft = Draft("probability-flow", grid, extrapolates="noise")
    for i in range(grid.steps):
        a, s, a_next, s_next = grid.a[i], grid.s[i], grid.a[i + 1], grid.s[i + 1]
        if s_next == 0:
            draft.add(i + 1, a_next / a, [-s * a_next / a])
        else:
            q = a / a_next
            draft.add(i + 1, 2 - q, [-(s**2 - (q * s_next) ** 2) / (2 * s)])
    return draft.plan()


PREDICTORS: dict[str, Callable] = {"probability flow": probability_flow, "exponential Euler": euler}


def langevin(path, grid: Grid) -> Plan:
    """Corrector steps alone, one at every noise level of the grid, then the data prediction."""
    columns = convert("data", "score", moments_in_float64(path, grid.times[:-1]))
    draft = Draft("langevin", grid, extrapolates="data")
    for i in range(grid.steps - 1):
        step = 2 * (SNR * grid.s[i]) ** 2
        draft.add(i + 1, 1.0, [step], A=columns.P[i], B=columns.Q[i], c=np.sqrt(2 * step))
    draft.add(grid.steps, 0.0, [grid.a[-1]])
    return draft.plan()


def likelihood_error(key) -> float:
    """The largest error of `log_prob` for a mixture in two dimensions, nats, in double precision."""
    with jax.enable_x64(True):
        means = np.array([[1.0, -0.5], [-1.2, 0.7], [0.2, -0.2]])
        errors = []
        for path in (VP(), SubVP(), VE()):
            # Of mean 0: what the source's normal law leaves out is then of second order.
            oracle = MixturePosterior(path, means - means.mean(0), np.array([0.2, 0.3, 0.1]) ** 2)
            x = jax.vmap(oracle.draw)(jr.split(key, 16))
            errors.append(exact_error(oracle, x))
        return float(max(errors))


@eqx.filter_jit
def exact_error(oracle: MixturePosterior, x: Float[Array, "n d"]) -> Float[Array, ""]:
    def one(x):
        return log_prob(oracle, x, rtol=1e-7, atol=1e-7) - oracle.log_prob(oracle.path.t_max, x)

    return jnp.abs(jax.vmap(one)(x)).max()


def conditional_bias(size: Size, key) -> tuple[float, float]:
    """Errors of E[second | first] of two correlated normals: replacement, and replacement with path weights."""
    path = VP()
    pair = MixturePosterior(path, np.zeros((1, 2)), np.array([[[1, CORRELATION], [CORRELATION, 1]]]))
    plan = ancestral(path, grids.log_snr(path, 150, high=4.5))
    known = condition_on_mask(np.array([True, False]), np.array([KNOWN, 0.0]))
    errors = []
    for controller in (known, PathWeighted(known)):
        found = steer(pair, plan, controller, size.particles, key=key, shape=(2,))
        mean = jax.nn.softmax(found.log_weight) @ found.x[:, 1]
        errors.append(abs(float(mean) - CORRELATION * KNOWN))
    return errors[0], errors[1]


def likelihoods(size: Size, train: learnt.Digits, test: learnt.Digits, key) -> dict[str, np.ndarray]:
    """Bits a dimension of test digits by path; same weights to begin with, same batches, same dequantisation."""
    key_fit, key_bits = jr.split(key)
    found = {}
    for name, path in (("vp", VP()), ("sub-vp", SubVP())):
        gen = learnt.fit(path, train.values, size.width, size.steps, key_fit)
        found[name] = np.asarray(learnt.bits(gen, test.values[: size.judged], size.divergence, key_bits))
    return found


def paired_error(bits: dict[str, np.ndarray]) -> float:
    difference = bits["vp"] - bits["sub-vp"]
    return float(difference.std() / len(difference) ** 0.5)


def conditions(size: Size, train: learnt.Digits, test: learnt.Digits, key) -> tuple[list[Picture], float, float]:
    """Coloured digits by class, by half and by grey values; the share recognised of guided and of real ones."""
    key_fit, key_labels, key_restore, key_real = jr.split(key, 4)
    made = learnt.fit_pictures(train, size.width, size.picture_steps, key_fit)
    labels = np.repeat(np.arange(10), size.pictures)
    guided = learnt.of_labels(made, size.pictures, key_labels, GUIDANCE)
    real = jax.vmap(learnt.paint)(jr.split(key_real, len(test.values)), jnp.asarray(test.values))
    seen = learnt.Digits(test.values[:3], test.labels[:3])
    rows = learnt.restored(made, seen, min(size.pictures, 8), key_restore)
    by_class = guided.reshape(10, size.pictures, 8, 8, 3)[:, :12]
    figures = [
        Picture(
            "classes",
            learnt.sheet(by_class, [str(label) for label in range(10)]),
            "Generated digits in random colours, one row for each of the labels 0 to 9",
            "An unconditional model guided by a noise-conditional classifier.",
        ),
        Picture(
            "restored",
            learnt.sheet(rows, ["half", "", "", "grey", "", ""]),
            "Held-out digits, what was shown of them, and restorations: lower halves, then colours",
            "Truth, what was seen, samples: inpainting (rows 1 to 3) and colourisation (4 to 6).",
        ),
    ]
    return figures, learnt.recognised(guided, labels, train), learnt.recognised(real, test.labels, train)


def corrector_picture(corrected: list[dict]) -> Picture:
    names = ["probability flow", "probability flow + corrector", "exponential Euler", "exponential Euler + corrector"]
    curves = {
        name: (CALLS, np.array([[abs(one[name, n].excess) for n in CALLS] for one in corrected])) for name in names
    }
    return Picture(
        "corrector",
        error_against_nfe(curves, ylabel="density gap, nats", floor=1e-2),
        "Gap of the samples' mean log density to the truth against network calls, with and without a corrector",
        "Equal calls. What a corrector mends is the crude predictor: the exponential step leaves little to mend.",
    )


def corrector_table(corrected: list[dict]) -> Table:
    names = [name for name, calls in corrected[0] if calls == CALLS[0]]
    rows = [[name, *(Spread.of([one[name, calls].excess for one in corrected]) for calls in CALLS)] for name in names]
    columns = ["sampler", *(f"{calls} calls" for calls in CALLS)]
    return Table("Excess of the mean negative log density, nats (0: as the truth)", columns, rows)
