"""Every deterministic solver against the number of calls: what to choose, and what choosing and learning are worth."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.random as jr
import numpy as np

from kinema.generate.alike import bind_alike
from kinema.generate.pilot import fine_plan
from kinema.generate.recommendation import PARTS, recommend
from kinema.generate.tuning import tune_plan
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import LIGHT, MARKERS, SERIES_LIGHT
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.solver_zoo_problems import (
    DIGITS,
    GUIDED,
    MIXTURE,
    POINTS,
    Cage,
    Problem,
    learnt_digits,
    problems,
)
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """`starts`: on which the zoo is tried; `part`: a sixteenth of the pilots on held-out problems (on digits: of
    `starts`); `exam`: parts on which recommended and tuned plans are judged; `fine`: calls of the converged solution;
    `tuning`: starts and steps of `tune_plan`; `training`: steps, width and depth of the network, None for
    digits as points in its place. In 64 dimensions all have a quarter as many starts."""

    calls: tuple[int, ...]
    starts: int
    part: int
    exam: int
    fine: int
    tuning: tuple[int, int]
    training: tuple[int, int, int] | None


FEW, HELD_OUT = 5, 8  # calls at which a plan is tuned, and at which one is recommended
SIZES = {
    "smoke": Size((FEW,), 16, 16, 1, 40, (32, 25), None),
    "quick": Size((FEW, 8, 15), 256, 256, 8, 128, (512, 300), (1000, 256, 3)),
    "full": Size((4, 5, 6, 8, 10, 12, 15, 20, 30, 50), 4096, 2048, 16, 512, (4096, 3000), (20_000, 512, 4)),
}
SMOKE = ("dpmpp-2m",)  # solvers of a smoke run
FAMILIES = {
    "Euler": ("euler",),
    "Heun": ("heun",),
    "DPM-Solver++, UniPC": ("dpmpp", "unipc"),
    "DEIS": ("deis",),
    "Adams": ("lms", "plms"),
    "momentum": ("ghvb", "heavy ball", "nesterov"),
}
Errors = dict[tuple[str, int], dict[str, float]]
"""Of every plan, by problem and number of calls."""


@study(
    "solver-zoo",
    "Shaul et al., 2024, arXiv 2403.01329",
    "The solver that a pilot run recommends is within 5 % of the best of the whole zoo on held-out problems; tuned on "
    "a trained generator, a plan of 5 calls is at least 20 % nearer to the converged solution than the best hand-made "
    "one.",
    title="Which solver?",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    cage = Cage(SMOKE if preset == "smoke" else (), size.fine)
    names, at = ((POINTS,), FEW) if preset == "smoke" else ((MIXTURE, GUIDED, POINTS), HELD_OUT)
    digits = learnt_digits(size.training, jr.key(seeds[0])) if size.training else problems(jr.key(seeds[0]))[POINTS]
    curves, held, tuned, best = [], [], [], []
    for seed in seeds:
        key_tried, key_held, key_tune = jr.split(jr.key(seed), 3)
        over = problems(key_tried)
        curves.append(tried(size, cage, {**{name: over[name] for name in names}, DIGITS: digits}, key_tried))
        held.append(held_out(size, cage, names, at, key_held))
        ours, theirs = tune(size, cage, digits, key_tune)
        tuned.append(ours)
        best.append(theirs)
    worst = [max(ratios.values()) for ratios in held]
    metrics = [
        Metric(f"recommended over the best of the zoo, {at} calls, worst problem", worst, 1.05, unit="x"),
        Metric(
            f"tuned over the best hand-made plan, trained digits, {FEW} calls",
            np.divide(tuned, best),
            0.8,
            unit="x",
        ),
        Metric(f"error of the tuned plan, {FEW} calls", tuned, baseline=best, against="best of the zoo"),
    ]
    return Evidence(
        metrics=metrics,
        figures=[picture(size, curves)],
        tables=[best_table(size, curves), held_table(held)],
        settings={
            "plans": {name: len(plans) for (name, _), plans in curves[0].items()},
            "starts a seed": size.starts,
            "pilots": {"held out": PARTS * size.part, "network": PARTS * size.starts // 4},
            "starts that judge": {"held out": size.exam * size.part, "network": size.exam * size.starts // 4},
            "digits as points": "a quarter of these starts",
            "converged": f"DPM-Solver++ 3M, {size.fine} calls equal in log-SNR",
            "tuning (starts, steps)": list(size.tuning),
            "network": f"perceptron (steps, width, depth) {size.training or 'none'}, one for all seeds",
        },
    )


def tried(size: Size, cage: Cage, over: Mapping[str, Problem], key) -> Errors:
    """Errors of the whole zoo on every problem at every number of calls."""
    found: Errors = {}
    for name, problem in over.items():
        starts = cage.starts(problem, size.starts // problem.dear, 1, key)
        for calls in size.calls:
            found[name, calls] = starts.errors(cage(problem, calls)[1])
    return found


def held_out(size: Size, cage: Cage, names: Sequence[str], calls: int, key) -> dict[str, float]:
    """Error of the recommended plan over that of the best of the zoo, on starts that the pilot has not seen: other
    and wider mixtures, another guidance scale and schedule, other and more blurred points."""
    key_problems, key_pilot, key_exam = jr.split(key, 3)
    ratios, over = {}, problems(key_problems, std=0.4, scale=4.0, blur=0.2, table=True)
    for name in names:
        problem = over[name]
        (plans, rows), part = cage(problem, calls), size.part // problem.dear
        said = recommend(
            problem.gen,
            calls,
            shape=(problem.dim,),
            key=key_pilot,
            cond=problem.cond(PARTS * part),
            candidates=plans,
            n=PARTS * part,
            fine=size.fine,
        )
        errors = cage.starts(problem, part, size.exam, key_exam).errors(rows)
        ratios[name] = errors[said.name] / min(errors.values())
    return ratios


def tune(size: Size, cage: Cage, digits: Problem, key) -> tuple[float, float]:
    """Error on new starts of the recommended plan once tuned, and of the best of the zoo on those very starts."""
    key_pilot, key_tune, key_exam = jr.split(key, 3)
    (plans, rows), shape, (n, steps) = cage(digits, FEW), (digits.dim,), size.tuning
    part = size.starts // digits.dear
    options = {"candidates": plans, "n": PARTS * part, "fine": size.fine}
    said = recommend(digits.gen, FEW, shape=shape, key=key_pilot, **options)
    teacher, batch = fine_plan(digits.gen, size.fine), min(128, n // 2)
    plan = tune_plan(said.plan, digits.gen, teacher, shape=shape, key=key_tune, n=n, steps=steps, batch_size=batch)
    starts = cage.starts(digits, part, size.exam, key_exam)
    (ours,) = starts.errors(bind_alike({plan.name: plan}, digits.gen)).values()
    return ours, min(starts.errors(rows).values())


def best_table(size: Size, curves: Sequence[Errors]) -> Table:
    """The best plan of each problem at each number of calls, by the mean over seeds."""
    rows = []
    for name in dict.fromkeys(name for name, _ in curves[0]):
        for calls in size.calls:
            mean = {plan: np.mean([one[name, calls][plan] for one in curves]) for plan in curves[0][name, calls]}
            best = min(mean, key=mean.__getitem__)
            rows.append([name, calls, best, Spread.of([one[name, calls][best] for one in curves])])
    return Table("The best plan, by its mean over seeds", ["problem", "calls", "solver", "error"], rows)


def held_table(held: Sequence[Mapping[str, float]]) -> Table:
    rows = [[name, Spread.of([one[name] for one in held]), max(one[name] for one in held)] for name in held[0]]
    return Table("Recommended over the best of the zoo", ["held-out problem", "mean", "worst"], rows)


def picture(size: Size, curves: Sequence[Errors]) -> Picture:
    """For each problem the best of every family against calls, the best of all ringed."""
    names = list(dict.fromkeys(name for name, _ in curves[0]))
    with house(6.8, 5.2, nrows=2, ncols=2, sharex=True) as (figure, axes):
        for panel in axes.flat[len(names) :]:
            panel.set_axis_off()
        for panel, name in zip(axes.flat, names):
            lowest = np.full(len(size.calls), np.inf)
            for index, (family, beginnings) in enumerate(FAMILIES.items()):
                errors = np.array([_family(curves, name, calls, beginnings) for calls in size.calls])
                if not np.isfinite(errors).any():
                    continue
                lowest = np.fmin(lowest, errors)
                style = {"color": SERIES_LIGHT[index], "marker": MARKERS[index], "ms": 4}
                panel.plot(size.calls, errors, label=family, **style)
            panel.plot(size.calls, lowest, ls="", marker="o", ms=10, mfc="none", mec=LIGHT["ink"], mew=1.0)
            panel.set(xscale="log", yscale="log", title=name)
            panel.minorticks_off()
            panel.set_xticks(size.calls, [str(calls) for calls in size.calls])
        figure.supxlabel("network evaluations")
        figure.supylabel("distance to the converged solution")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return Picture(
        "zoo",
        figure,
        "Error against network evaluations of six families of solvers on four problems, the best ringed",
        "Of each family the best order and grid, mean over seeds; the best of all is ringed.",
    )


def _family(curves: Sequence[Errors], name: str, calls: int, beginnings: tuple[str, ...]) -> float:
    """The smallest mean error over seeds of the plans of a family, NaN without one."""
    plans = [plan for plan in curves[0][name, calls] if plan.startswith(beginnings)]
    return min((float(np.mean([one[name, calls][plan] for one in curves])) for plan in plans), default=np.nan)
