"""Langevin correctors: steps at a fixed time that pull the samples back to the law they should have there.

    x <- x + e score + sqrt(2 e) xi

`predictor_corrector` puts them in front of every step of another plan.

Reference: Song et al. 2021 (score SDE, algorithms 4 and 5), the step size per sample and not per batch.
"""

from dataclasses import replace

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import check_count
from kinema.generate.solver.plan import COLUMNS, Draft, Plan


def predictor_corrector(path, plan: Plan, *, rule: str = "annealed", snr: float = 0.16, corrections: int = 1) -> Plan:
    """`corrections` Langevin steps before each step of a plan that keeps no memory between steps.

    `rule`: "annealed" takes e = 2 (snr s)^2, the same for all states, so the law stays invariant as snr -> 0;
    "adaptive" sets the ratio of noise to score to `snr`, e = 2 (snr sqrt(dim) / |score|)^2. 0.05 to 0.2 are useful.

    Raises:
        InputError: a plan with memory (multistep); an unknown rule; snr not positive; corrections below 1.
    """
    if rule not in ("annealed", "adaptive"):
        raise InputError(f"rule must be 'annealed' or 'adaptive', got {rule!r}")
    if not snr > 0:
        raise InputError(f"snr must be positive, got {snr}")
    check_count("corrections", corrections)
    begins = np.r_[True, plan.whole[:-1]]
    if plan.fallback or plan.E.any() or plan.M[begins, :, 1].any() or plan.M[begins, :, 3:].any():
        raise InputError(
            f"{plan.name} remembers past predictions, which a corrector makes stale; use a one-step solver: euler,"
            " heun, ancestral, reverse-diffusion"
        )
    points = np.r_[0, plan.after[:-1]][begins]
    draft = Draft(f"{plan.name}+langevin", plan.grid, extrapolates=plan.extrapolates, history=plan.history)
    for point in points:
        step = 2 * (snr * plan.grid.s[point]) ** 2
        for _ in range(corrections):
            options = {"t": float(plan.grid.times[point]), "whole": False, "B": 0.0, "S": 1.0}
            if rule == "annealed":
                draft.add(int(point), 1.0, [step], c=np.sqrt(2 * step), **options)
            else:
                draft.add(int(point), 1.0, snr=snr, **options)
    corrector = draft.plan()
    order = np.argsort(np.r_[np.repeat(np.flatnonzero(begins), corrections), np.arange(plan.nfe)], kind="stable")
    rows = {name: np.concatenate([getattr(corrector, name), getattr(plan, name)])[order] for name in COLUMNS}
    return replace(plan, name=corrector.name, **rows)
