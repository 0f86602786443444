"""How a plan answers the linear test problem: companion matrices and their growth."""

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.plan import Plan


def companion(plan: Plan, j: int, gain: complex | float, score: complex | float = 0.0) -> np.ndarray:
    """Row j as a matrix on (x, anchor, H0 .. Hk-1) when the model's field is gain x and its score is score x, without
    noise and constants.

    Sampling is the product of these matrices, so their product says what a plan does with a linear field.

    Raises:
        InputError: a plan whose coefficients carry the shape of a sample.
    """
    if plan.M.ndim > 3:
        raise InputError(f"{plan.name} has coefficients for each coordinate; a companion matrix needs plain numbers")
    size = 2 + plan.history
    evaluate = np.eye(size, dtype=complex)
    evaluate[0, 0] = plan.r[j]
    push = np.zeros((size, size), complex)
    push[0, 0] = push[1, 1] = 1
    push[2, 0], push[2, 2] = plan.A[j] + plan.B[j] * gain + plan.S[j] * score, plan.E[j]
    push[range(3, size), range(2, size - 1)] = 1
    combine = np.eye(size, dtype=complex)
    combine[:2] = plan.M[j]
    return combine @ push @ evaluate


def growth(plan: Plan, gains) -> complex:
    """The factor by which a plan multiplies x under the field gains[j] x at row j (one gain, or one a row)."""
    total = np.eye(2 + plan.history, dtype=complex)
    for j, gain in enumerate(np.broadcast_to(np.asarray(gains), plan.nfe)):
        total = companion(plan, j, gain) @ total
    start = np.zeros(len(total))
    start[:2] = 1
    return total[0] @ start


def spectral_radius(plan: Plan, j: int, gain: complex | float) -> float:
    """Growth a row of the plan would have if repeated for ever: stable at 1 or less."""
    return float(np.abs(np.linalg.eigvals(companion(plan, j, gain))).max())
