"""Heun's method with churn and restarts: two evaluations a step, no memory between steps.

Euler from x to the next point, then the same step again with the mean of the predictions at both ends. On the noise
prediction this is the sampler of Karras et al. *Churn* first lifts x from the noise ratio kappa to kappa (1 + gamma);
*restarts* put a whole range of noise back and solve it again, which forgets the errors made above.

Reference: Karras et al. 2022 (EDM); Xu et al. 2023 (restart).
"""

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid, check_count
from kinema.generate.solver.held import Held
from kinema.generate.solver.plan import HERE, Draft, Plan

HIGHEST_GAMMA = np.sqrt(2) - 1
VARIABLE = {"data": "log-snr", "noise": "noise-ratio", "velocity": "time"}


def heun(path, grid: Grid, *, extrapolates: str = "noise") -> Plan:
    """Second order, 2 evaluations a step (1 in a last step onto s = 0), on "noise", "data" or "velocity".

    Raises:
        InputError: unknown `extrapolates`; the noise on a grid that starts where a = 0.
    """
    return churn(path, grid, amount=0.0, extrapolates=extrapolates)


def churn(
    path,
    grid: Grid,
    *,
    amount: float = 2.0,
    low: float = 0.0,
    high: float = np.inf,
    noise: float = 1.0,
    extrapolates: str = "noise",
) -> Plan:
    """Heun with noise put back before each step that starts at a noise ratio in [low, high].

    `amount` is spread over all steps: kappa grows by gamma = amount / steps each time. `noise` scales what is added
    (1.003 is published for images).

    Raises:
        InputError: gamma above sqrt(2) - 1 or negative; noise not positive; low not below high; see also `heun`.
    """
    gamma = amount / grid.steps
    if not 0 <= gamma <= HIGHEST_GAMMA:
        raise InputError(
            f"amount must be in [0, {HIGHEST_GAMMA * grid.steps:.4g}] for {grid.steps} steps (gamma at most 0.414), got"
            f" {amount}, gamma={gamma:.3g}"
        )
    if not noise > 0:
        raise InputError(f"noise must be positive, got {noise}")
    if not 0 <= low < high:
        raise InputError(f"low must be in [0, high), got low={low}, high={high}")
    draft = Draft("churn" if amount else "heun", grid, extrapolates=extrapolates, history=2)
    for i, kappa in enumerate(grid.noise_ratio[:-1]):
        here, lift = _point(grid, i), STAY
        if gamma > 0 and low <= kappa <= high and np.isfinite(kappa):
            here, lift = _lift(grid, here, kappa * (1 + gamma), noise)
        _step(path, draft, here, _point(grid, i + 1), i + 1, lift=lift)
    return draft.plan()


def restart(
    path,
    grid: Grid,
    *,
    low: float = 0.06,
    high: float = 0.3,
    inner: int = 3,
    repeats: int = 4,
    rho: float = 7.0,
    extrapolates: str = "noise",
) -> Plan:
    """Heun that, at the grid point nearest to noise ratio `low`, goes back up to `high` `repeats` times.

    Each time it solves down again in `inner` steps, equal in kappa^(1/rho). Data of unit size are supposed; scale low
    and high with it.

    Raises:
        InputError: not 0 < low < high, or the grid has no point below high; inner or repeats below 1; see also `heun`.
    """
    check_count("inner", inner)
    check_count("repeats", repeats)
    if not 0 < low < high:
        raise InputError(f"low must be positive and below high, got low={low}, high={high}")
    kappa = grid.noise_ratio
    inside = np.flatnonzero((kappa > 0) & np.isfinite(kappa) & (np.arange(grid.steps + 1) > 0))
    if not inside.size or not kappa[inside].min() < high:
        raise InputError(f"high={high} is below every noise ratio of the grid; nothing to restart")
    turn = int(inside[np.argmin(np.abs(np.log(kappa[inside] / low)))])
    if not kappa[turn] < high:
        raise InputError(f"high={high} must be above {kappa[turn]:.3g}, the grid's noise ratio nearest to low={low}")
    powers = np.linspace(high ** (1 / rho), kappa[turn] ** (1 / rho), inner + 1)
    draft = Draft("restart", grid, extrapolates=extrapolates, history=2)
    for i in range(grid.steps):
        _step(path, draft, _point(grid, i), _point(grid, i + 1), i + 1, whole=i + 1 != turn)
        if i + 1 != turn:
            continue
        top, lift = _lift(grid, _point(grid, turn), high, 1.0)
        points = [top, *(grid.at_noise_ratio(power**rho) for power in powers[1:-1]), _point(grid, turn)]
        for repeat in range(repeats):
            for k in range(inner):
                landed, up = repeat == repeats - 1 and k == inner - 1, lift if k == 0 else STAY
                _step(path, draft, points[k], points[k + 1], turn, lift=up, whole=landed)
    return draft.plan()


Point = tuple[float, float, float, float]
"""(t, a, b, s)"""
STAY = (1.0, 0.0)


def _point(grid: Grid, i: int) -> Point:
    return grid.times[i], grid.a[i], grid.b[i], grid.s[i]


def _lift(grid: Grid, here: Point, kappa: float, noise: float) -> tuple[Point, tuple[float, float]]:
    """The point at the higher noise ratio kappa, and the r and n that bring x there."""
    there = grid.at_noise_ratio(kappa)
    grown = np.sqrt(max(kappa**2 - (here[3] / here[1]) ** 2, 0.0))
    return there, (there[1] / here[1], there[1] * noise * grown)


def _step(path, draft: Draft, here: Point, there: Point, after: int, *, lift=STAY, whole: bool = True):
    """One Heun step; onto s = 0 one of Euler."""
    pair = Grid(*np.array([here, there]).T, clean=draft.grid.clean and bool(there[3] == 0))
    held = Held(path, pair, draft.extrapolates, VARIABLE.get(draft.extrapolates, "?"))
    x, H = held.step(0, [0])
    first = {"t": here[0], "r": lift[0], "n": lift[1]}
    if there[3] == 0:
        draft.add(after, x, H, whole=whole, **first)
        return
    draft.add(after, x, H, whole=False, keep=HERE, **first)
    x, H = held.step(0, [1, 0])
    draft.add(after, 0.0, H, t=there[0], anchor=x, whole=whole)
