"""Score SDEs: one continuous description, many samplers, exact likelihoods, conditions without retraining."""

from typing import NamedTuple

import jax.random as jr
import numpy as np

from kinema.generate import VE, VP, Path, SubVP
from kinema.report.charts import error_against_nfe
from kinema.report.picture import Picture
from kinema.studies import score_sde_digits as learnt
from kinema.studies import score_sde_mixture as exact
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.one_of import OneOf
from kinema.studies.score_sde_digits import Recipe
from kinema.studies.score_sde_mixture import EXPONENTIAL, FLOW, SNRS, TRUTH, Qualities
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """How much a preset does. `calls`: few, some and many network calls; `recipe`: that of networks whose likelihood
    is measured on `judged` digits."""

    calls: tuple[int, int, int]
    samples: int
    paths: tuple[Path, ...]
    particles: int
    recipe: Recipe
    judged: int
    divergence: str
    picture_steps: int
    pictures: int


PATHS = VP(), SubVP(), VE()
SIZES = {
    "smoke": Size((4, 6, 8), 200, (VE(),), 64, Recipe(16, 1, 10, 256, 1e-3), 8, "hutchinson", 10, 2),
    "quick": Size((20, 100, 200), 2000, PATHS, 2048, Recipe(128, 3, 1400, 128, 1.4e-3), 150, "hutchinson", 900, 20),
    "full": Size((20, 100, 200), 50000, PATHS, 16384, Recipe(256, 3, 20000, 256, 1e-3), 100, "exact", 20000, 100),
}
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
    recipe = size.recipe
    keys = [jr.key(seed) for seed in seeds]
    corrected = exact.against_corrector(size.calls, size.samples, keys)
    bias = [exact.conditional_bias(size.particles, key) for key in keys]
    train, test = learnt.digits()
    bits = [likelihoods(size, train, test, key) for key in keys]
    pictures, recognised, real = conditions(size, train, test, keys[0])
    return Evidence(
        metrics=[
            *corrector_metrics(size, corrected),
            Metric(
                "error of the exact log-likelihood, worst path",
                [exact.likelihood_error(size.paths, key) for key in keys],
                1e-3,
                unit="nats",
            ),
            Metric("bits/dim, VP minus sub-VP", [np.mean(one["vp"] - one["sub-vp"]) for one in bits], 0.02, ">="),
            Metric(
                "bits/dim, sub-VP",
                [one["sub-vp"].mean() for one in bits],
                baseline=[one["vp"].mean() for one in bits],
                against="VP",
            ),
            Metric(
                "error of a conditional mean, path weights",
                [weighted for _, weighted in bias],
                0.05,
                baseline=[plain for plain, _ in bias],
                against="replacement",
            ),
            Metric("guided digits recognised", recognised, 0.8, ">=", baseline=real, against="real digits"),
        ],
        figures=[corrector_picture(size, corrected), *pictures],
        tables=[
            corrector_table(
                size, corrected, "excess", "Excess of the mean negative log density over the truth's, nats"
            ),
            corrector_table(size, corrected, "distance", "Sliced Wasserstein distance to the truth"),
        ],
        settings={
            "corrector": f"annealed Langevin, snr {SNRS[-1]} unless it is named",
            "networks": f"perceptron {recipe.width} x {recipe.depth}",
            "training": f"{recipe.steps} steps, batch {recipe.batch}, rate {recipe.rate:g}",
            "likelihood": f"tsit5 at 1e-5 from u = 0.001, {size.divergence} divergence, {size.judged} digits",
            "bits of the uniform law": float(np.log2(learnt.LEVELS)),
            "standard error of the paired difference": [paired_error(one) for one in bits],
            "pictures": f"VP, {size.picture_steps} steps; guidance {GUIDANCE:g}",
        },
    )


def corrector_metrics(size: Size, corrected: list[Qualities]) -> list[Metric]:
    few, some, many = size.calls
    low, published, best = SNRS

    def gap(name: str, calls: int) -> list[float]:
        return [abs(one[name, calls].excess) for one in corrected]

    def distance(name: str, calls: int) -> list[float]:
        return [one[name, calls].distance for one in corrected]

    def ratio(calls: int) -> np.ndarray:
        return np.divide(distance(f"{FLOW}, corrector {best}", calls), distance(FLOW, calls))

    return [
        Metric(
            f"density gap at {some} calls, with corrector",
            gap(f"{FLOW}, corrector {best}", some),
            0.25,
            baseline=gap(FLOW, some),
            unit="nats",
            against="predictor alone",
        ),
        Metric(f"sliced Wasserstein at {many} calls, with corrector over without", ratio(many), 1.0),
        Metric(f"sliced Wasserstein at {few} calls, with corrector over without", ratio(few), 1.0, ">="),
        Metric(
            f"density gap at {many} calls, corrector {published} alone",
            gap(f"corrector {published} alone", many),
            3.0,
            ">=",
            baseline=gap(FLOW, many),
            unit="nats",
            against="predictor alone",
        ),
        Metric(
            f"sliced Wasserstein at {many} calls, corrector {low} alone",
            distance(f"corrector {low} alone", many),
            3.0,
            ">=",
            baseline=distance(TRUTH, many),
            against=TRUTH,
        ),
    ]


def likelihoods(size: Size, train: learnt.Digits, test: learnt.Digits, key) -> dict[str, np.ndarray]:
    """Bits a dimension of test digits by path; same weights to begin with, same batches, same dequantisation."""
    key_fit, key_bits = jr.split(key)
    found = {}
    for i, name in enumerate(("vp", "sub-vp")):
        path = OneOf((VP(), SubVP()), i)
        gen = learnt.fit(path, train.values, size.recipe, key_fit)
        found[name] = np.asarray(learnt.bits(gen, test.values[: size.judged], size.divergence, key_bits))
    return found


def paired_error(bits: dict[str, np.ndarray]) -> float:
    difference = bits["vp"] - bits["sub-vp"]
    return float(difference.std() / len(difference) ** 0.5)


def conditions(size: Size, train: learnt.Digits, test: learnt.Digits, key) -> tuple[list[Picture], float, float]:
    """Coloured digits by class, by half and by grey values; the share recognised of guided and of real ones."""
    key_fit, key_labels, key_restore, key_real = jr.split(key, 4)
    made = learnt.fit_pictures(train, size.recipe._replace(steps=size.picture_steps), key_fit)
    labels = np.repeat(np.arange(10), size.pictures)
    guided = learnt.of_labels(made, size.pictures, key_labels, GUIDANCE)
    real = learnt.painted(key_real, test.values)
    rows = learnt.restored(made, real[:3], min(size.pictures, 8), key_restore)
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


def corrector_picture(size: Size, corrected: list[Qualities]) -> Picture:
    names = [FLOW, f"{FLOW}, corrector {SNRS[-1]}", EXPONENTIAL, f"{EXPONENTIAL}, corrector {SNRS[-1]}"]
    gaps = {n: np.array([[abs(one[n, calls].excess) for calls in size.calls] for one in corrected]) for n in names}
    return Picture(
        "corrector",
        error_against_nfe(
            {name: (size.calls, gap) for name, gap in gaps.items()}, ylabel="density gap, nats", floor=1e-2
        ),
        "Gap of the samples' mean log density to the truth against network calls, with and without a corrector",
        "Equal calls. What a corrector mends is the crude predictor: the exponential step leaves little to mend.",
    )


def corrector_table(size: Size, corrected: list[Qualities], field: str, title: str) -> Table:
    names = list(dict.fromkeys(name for name, _ in corrected[0]))
    rows = [
        [name, *(Spread.of([getattr(one[name, calls], field) for one in corrected]) for calls in size.calls)]
        for name in names
    ]
    return Table(title, ["sampler", *(f"{calls} calls" for calls in size.calls)], rows)
