"""Mean-reverting diffusion: restoration that starts at the degraded sample, with a tenth of the calls."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np

from kinema.report.charts import error_against_nfe
from kinema.report.picture import Picture
from kinema.studies import mr_diffusion_exact as exact
from kinema.studies import mr_diffusion_pictures as pictures
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.mr_diffusion_exact import EULER, FLOWS, NOISY, ODE, POSTERIOR, SDE, TRUTH, Errors
from kinema.studies.mr_diffusion_pictures import TASKS, Patches, Quality
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """How much a preset does: samplers, calls and samples where the denoiser is exact; network, training, patches and
    calls by sampler where it is learnt."""

    samplers: tuple[str, ...]
    counts: tuple[int, ...]
    samples: int
    network: Mapping[str, Any]
    side: int
    steps: int
    patches: int
    judged: int
    plans: Mapping[str, tuple[int, ...]]


ALL = (POSTERIOR, EULER, *FLOWS, *(name for name in NOISY if name not in (POSTERIOR, EULER)))
PERCEPTRON, UNET = {"name": "mlp", "width": 256, "depth": 3}, {"name": "image_unet", "width": 64}
FEW = {POSTERIOR: (100,), EULER: (100,), ODE: (10,)}
MANY = {POSTERIOR: (10, 100), EULER: (10, 100), ODE: (10,), SDE: (10,)}
SIZES = {
    "smoke": Size((POSTERIOR, EULER, ODE, SDE), (20, 100), 500, PERCEPTRON | {"width": 8}, 8, 4, 60, 30, FEW),
    "quick": Size(ALL, (10, 20, 50, 100), 100_000, PERCEPTRON, 12, 800, 30_000, 1500, MANY),
    "full": Size(ALL, (5, 10, 20, 50, 100), 1_000_000, UNET, 24, 15_000, 60_000, 6000, MANY),
}
GIVEN = "degraded"


@study(
    "mr-diffusion",
    "Li, Fang, Zhao, Lu, Yang, Xu, 2025, arXiv 2502.07856",
    "Mean reversion is an ordinary diffusion of what the degraded sample lacks, so exponential solvers apply: 10 to 20 "
    "calls restore as well as 100 of posterior sampling or Euler-Maruyama.",
    title="Mean-reverting diffusion and its fast sampler",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    keys = [jr.split(jr.key(seed)) for seed in seeds]
    flows = exact.flow_errors(size.samplers, size.counts)
    found = [{**flows, **exact.noisy_errors(size.samplers, size.counts, size.samples, key)} for key, _ in keys]
    rng = np.random.default_rng(0)
    trained = pictures.patches(size.patches, size.side, rng, held_out=False)
    seen, others = (pictures.patches(size.judged, size.side, rng, held_out=True) for _ in range(2))
    made = [restorations(size, trained, seen, key) for _, key in keys]
    judged = [{name: pictures.qualities(x, seen, others.clean) for name, x in one.items()} for one in made]
    return Evidence(
        metrics=exact_metrics(found) + learnt_metrics(judged),
        figures=[error_picture(found, size.counts), restored_picture(made[0], seen)],
        tables=[exact_table(found, size), learnt_table(judged)],
        settings={
            "exact part": f"three modes on a line, W1, {size.samples} samples",
            "patches": f"{size.side} x {size.side} grey, of two photographs at half size; left 3/4 to learn from",
            "degradations": f"noise {pictures.NOISE}; square of 1/3 of the side lost; blur of {pictures.BLUR} pixels",
            "network": dict(size.network),
            "training": f"{size.steps} steps, batch 256, data prediction, one network for all three",
        },
    )


Restored = Mapping[tuple[str, int], np.ndarray]
Judged = Mapping[tuple[str, int], Mapping[str, Quality]]


def restorations(size: Size, trained: Patches, seen: Patches, key) -> Restored:
    """Held-out patches as they are given, and restored by every solver of one generator."""
    key_fit, key_draw = jr.split(key)
    gen = pictures.fit(trained, size.network, size.steps, key_fit)
    solvers = pictures.solvers(gen, size.plans)
    return {(GIVEN, 0): seen.degraded} | {
        name: pictures.restore(gen, rows, seen, key_draw) for name, rows in solvers.items()
    }


def exact_metrics(found: Sequence[Errors]) -> list[Metric]:
    return [
        Metric(
            "error at 20 calls over posterior sampling at 100", [e[ODE, 20] / e[POSTERIOR, 100] for e in found], 1.0
        ),
        Metric("error of posterior sampling at 20 over it", [e[POSTERIOR, 20] / e[ODE, 20] for e in found], 4.0, ">="),
        Metric(
            "error of the SDE solver over the best other at 100",
            [e[SDE, 100] / min(e[name, 100] for name in (POSTERIOR, EULER, *FLOWS) if (name, 100) in e) for e in found],
            1.0,
        ),
    ]


def learnt_metrics(judged: Sequence[Judged]) -> list[Metric]:
    """Ten calls against a hundred: the worst task for the signal-to-noise ratio, the mean for the distance."""
    metrics = []
    for name in (EULER, POSTERIOR):
        gained = [min(one[ODE, 10][task].psnr - one[name, 100][task].psnr for task in TASKS) for one in judged]
        apart = [mean_distance(one[ODE, 10]) / mean_distance(one[name, 100]) for one in judged]
        metrics += [
            Metric(f"photographs: PSNR at 10 calls less {name} at 100", gained, 0.0, ">=", unit="dB"),
            Metric(f"photographs: distance at 10 calls over {name} at 100", apart, 1.0),
        ]
    return metrics


def mean_distance(quality: Mapping[str, Quality]) -> float:
    return float(np.mean([quality[task].distance for task in TASKS]))


def exact_table(found: Sequence[Errors], size: Size) -> Table:
    return Table(
        "Wasserstein distance to the truth by calls, exact denoiser",
        ["sampler", *map(str, size.counts)],
        [
            [name, *(Spread.of([e[name, calls] for e in found]) for calls in size.counts)]
            for name in (*size.samplers, TRUTH)
        ],
    )


def learnt_table(judged: Sequence[Judged]) -> Table:
    def spread(which: tuple[str, int], task: str, measure: str) -> Spread:
        return Spread.of([getattr(one[which][task], measure) for one in judged])

    return Table(
        "Restored photographs: peak signal-to-noise ratio, dB, and energy distance to clean patches",
        ["sampler", *(f"{task}, dB" for task in TASKS), *(f"{task}, distance" for task in TASKS)],
        [
            [label(which), *(spread(which, task, measure) for measure in Quality._fields for task in TASKS)]
            for which in judged[0]
        ],
    )


def label(which: tuple[str, int]) -> str:
    name, calls = which
    return f"{name}, {calls} calls" if calls else name


def error_picture(found: Sequence[Errors], counts: Sequence[int]) -> Picture:
    shown = (POSTERIOR, EULER, ODE, SDE, TRUTH)
    curves = {name: (np.array(counts), np.array([[e[name, c] for c in counts] for e in found])) for name in shown}
    return Picture(
        "calls",
        error_against_nfe(curves, ylabel="Wasserstein distance"),
        "Error against calls of posterior sampling, Euler-Maruyama, the fast ODE and SDE solvers and the truth itself",
        "The flow is first at few calls and stops at the mismatch of its source, which the SDE forgets.",
    )


def restored_picture(made: Restored, seen: Patches) -> Picture:
    rows = {"clean": seen.clean} | {label(which): made[which] for which in ((GIVEN, 0), (EULER, 100), (ODE, 10))}
    return Picture(
        "restored",
        pictures.sheet(rows, seen),
        "Held-out patches of photographs: clean, degraded, restored by 100 calls of Euler-Maruyama and by 10 calls",
        "One small network; a tenth of the calls restores as well.",
    )
