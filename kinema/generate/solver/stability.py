"""How a plan answers the linear test problem: companion matrices, their growth, and the region where steps are stable.

The region of step i is that of u' = l u in the variable of the plan, z = l d for a step of length d, the step repeated
for ever. A multistep row is linear in z but for one column, so the boundary is had in closed form: where the matrix has
the eigenvalue e^(i angle).
"""

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.plan import Plan

ROUNDING = 1e-7  # double roots on the unit circle are found to the square root of the precision


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


def amplification(plan: Plan, step: int, z) -> np.ndarray:
    """What a step makes of (X, anchor, H0 ..) where the law is u' = l u: matrices `(..., 2 + k, 2 + k)` for z = l d.

    d is the length of the step in the noise ratio, and X = x / a, if the plan extrapolates the noise; in t, and X = x,
    if it extrapolates the velocity.

    Raises:
        InputError: no such step; a plan that extrapolates data (its steps are exact in another linear part), adds noise
            or has the shape of a sample; a step of infinite length.
    """
    rows, length = _rows(plan, step), _length(plan, step)
    scales = _scales(plan)
    by_time = dict(zip(plan.grid.times, scales))
    z, total = np.asarray(z, complex), np.eye(2 + plan.history, dtype=complex)
    for j in rows:
        still, moving = companion(plan, j, 0.0), companion(plan, j, 1.0)
        gain = z / length / by_time[plan.t[j]]
        total = (still + gain[..., None, None] * (moving - still)) @ total
    before = scales[step - 1] if step and _lags(plan, rows[0] - 1) else scales[step]
    after = scales[step] if _lags(plan, rows[-1]) else scales[step + 1]
    memory = np.ones(plan.history)
    return total * np.r_[scales[step], before, memory] / np.r_[scales[step + 1], after, memory][:, None]


def stability_radius(plan: Plan, step: int, z) -> np.ndarray:
    """Growth of a step repeated for ever, for z as in `amplification`; stable at 1 or less.

    Example:
        >>> plan = solver.ghvb(path, grids.from_noise_ratios(path, np.arange(9, 0, -1.0)), number=1.5, variable=False)
        >>> stability_radius(plan, 6, [-1.4, -1.6]) < 1
        array([ True, False])
    """
    return np.asarray(np.abs(np.linalg.eigvals(amplification(plan, step, z))).max(-1))


def real_interval(plan: Plan, step: int) -> float:
    """The lowest z of the interval [z, 0] in which a step is stable; -inf if that is below -1000."""
    points = -np.geomspace(1e-3, 1e3, 600)
    unstable = stability_radius(plan, step, points) > 1 + ROUNDING
    if not unstable.any():
        return -np.inf
    first = int(np.argmax(unstable))
    low, high = points[first], points[first - 1] if first else 0.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if stability_radius(plan, step, middle) > 1 + ROUNDING else (low, middle)
    return float(high)


def locus(plan: Plan, step: int, n: int = 721) -> np.ndarray:
    """The z `(n,)` at which a step of one evaluation has the eigenvalue e^(i angle), angle from 0 to 2 pi: the boundary
    of its region and, where the curve crosses itself, more.

    Raises:
        InputError: a step of several evaluations, and what `amplification` refuses.
    """
    if len(_rows(plan, step)) > 1:
        raise InputError(f"{plan.name} evaluates more than once in step {step}; draw `stability_radius` instead")
    still = amplification(plan, step, 0.0)
    slope = amplification(plan, step, 1.0) - still
    turns = np.exp(1j * np.linspace(0, 2 * np.pi, n)[1:-1])
    resolvent = np.linalg.solve(turns[:, None, None] * np.eye(len(still)) - still, slope)
    # slope has rank one: 1 = z trace((e^(i angle) - still)^-1 slope); at angle 0 the curve goes through 0
    return np.r_[0, 1 / np.trace(resolvent, axis1=-2, axis2=-1), 0]


def _rows(plan: Plan, step: int) -> range:
    """The micro-steps of a step."""
    if plan.extrapolates == "data" or plan.stochastic:
        raise InputError(
            f"{plan.name} {'adds noise' if plan.stochastic else 'extrapolates data'}; give a plan that"
            " extrapolates the noise or the velocity, without noise of its own"
        )
    ends = np.flatnonzero(plan.whole)
    if not 0 <= step < len(ends):
        raise InputError(f"step must be in 0 .. {len(ends) - 1}, got {step}")
    return range(ends[step - 1] + 1 if step else 0, ends[step] + 1)


def _length(plan: Plan, step: int) -> float:
    grid = plan.grid
    tau = grid.noise_ratio if plan.extrapolates == "noise" else grid.times
    length = tau[step + 1] - tau[step]
    if not np.isfinite(length) or length == 0:
        raise InputError(f"step {step} of {plan.name} has the length {length:g}; give a step inside the grid")
    return float(length)


def _scales(plan: Plan) -> np.ndarray:
    return plan.grid.a if plan.extrapolates == "noise" else np.ones_like(plan.grid.a)


def _lags(plan: Plan, j: int) -> bool:
    """Whether row j leaves the anchor one point behind x."""
    return not np.array_equal(plan.M[j, 0], plan.M[j, 1])
