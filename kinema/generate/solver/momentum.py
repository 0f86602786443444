"""Momentum on multistep solvers: heavy ball (HB), generalized heavy ball (GHVB), Nesterov.

Multistep solvers of high order diverge where guidance makes the flow stiff; a velocity that follows the field f slowly
widens the region where they are stable, at no further call. A `number` such as 3.8 is order 4 with b = 0.8, a whole one
the plain method. With AB(..) the step of that order and D the backward difference, X' = X + d V(..):

    HB         V = v' = (1 - b) v + b AB(f)
    GHVB       v' = (1 - b) v + b f,    V = AB((1 + (1 - b) / b D) v'), of the order of AB
    Nesterov   v' = (1 - b) v + b AB(f),    V = (1 - b) v' + b AB(f)

HB and Nesterov are of first order. GHVB keeps its velocity in the plan's running average; the others read theirs off
the last step, v = (X - X_previous) / d_previous.

Reference: Wizadwongsa et al. 2024. Their equation 19 has a sign wrong, which their algorithm 2 has right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.adams import adams
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.held import Held, interpolate
from kinema.generate.solver.plan import HERE, Plan, assemble

HIGHEST = 5
LEAST = 0.01  # of b: weights grow as 1 / b, and rounding with them
FORGOTTEN = 1e-6  # the share of a velocity's start that no longer matters, when fallback rows end

Rule = Callable[[int, int], np.ndarray]
"""(step i, count) -> weights of the fields at i, i - 1, .. in the step."""


def ghvb(
    path,
    grid: Grid,
    *,
    number: float | int = 3.8,
    extrapolates: str = "noise",
    variable: bool = True,
    start: str = "heun",
) -> Plan:
    """GHVB of any `number` in (0, 5] on the noise (in kappa) or the velocity (in t).

    `variable=True` gives the weights that are exact for polynomials on the real grid, the start of the velocity
    included; False those of equal steps and a velocity long under way. `start` as in `adams`; the published method is
    `variable=False, start="euler"`. Smaller numbers are more stable and less accurate: see `number_for`.

    Example:
        >>> solver.ghvb(path, grids.karras(path, 8), number=3.3).nfe
        8

    Raises:
        InputError: a number that `split` refuses; unknown `extrapolates` or `start`; the noise on a grid that starts
            where a = 0.
    """
    order, beta = split(number)
    name = f"ghvb-{number:g}"
    if beta == 1:
        plain = adams(path, grid, order=order, extrapolates=extrapolates, variable=variable, start=start)
        return replace(plain, name=name)
    if start not in ("euler", "heun"):
        raise InputError(f"start must be 'euler' or 'heun', got {start!r}")
    held, corrects = _held(path, grid, extrapolates), start == "heun" and order > 1
    tabulated = [generalized_weights(count, beta) for count in range(1, order + 1)]

    def weights(i: int, age: int) -> np.ndarray:
        count = min(order, age + 1)
        moments = held.moments(i, count)
        if not variable:
            return moments[0] * tabulated[count - 1]
        nodes = np.arange(i - age, i + 1)
        positions = (held.tau[nodes] - held.tau[i]) / (held.tau[i + 1] - held.tau[i])
        powers = np.vander(positions, count, increasing=True)
        return np.linalg.solve(powers.T @ _averages(age, count, beta).T, moments)

    def row(i: int, age: int) -> dict[str, Any]:
        if held.jumps(i):
            x, H = held.step(i, [i])
            return {"after": i + 1, "x": x, "H": H}
        x, H = held.linear(i), weights(i, age)
        if age == 0:
            return {"after": i + 1, "x": x, "H": H, "keep": HERE if corrects and i == 0 else None}
        average = {"after": i + 1, "B": beta, "E": 1 - beta}
        if corrects and i == 1 and age == 1:
            anchor, (new, old) = held.step(0, [1, 0])
            H[:2] += x * np.array([new / beta, old - new * (1 - beta) / beta])  # of velocities, not of fields
            return average | {"anchor": x * anchor, "H": H}
        return average | {"x": x, "H": H}

    memory = math.ceil(math.log(FORGOTTEN) / math.log(1 - beta)) if variable else 1
    depth = min(max(order - 1, memory), max(grid.steps - 1, 1))
    options = {"extrapolates": extrapolates, "history": order, "depth": depth}
    return assemble(name, grid, row, grid.steps, **options)


def heavy_ball(
    path, grid: Grid, *, number: float | int = 3.8, extrapolates: str = "noise", variable: bool = True
) -> Plan:
    """Polyak's heavy ball on Adams-Bashforth; with `extrapolates="data"` on DPM-Solver++ 2M.

    `variable` as in `adams`; the data form has the published midpoint step and `number` in (1, 2], and its momentum
    begins with the first step of order 2.

    Example:
        >>> solver.heavy_ball(path, grid, number=2.6).name
        'hb-2.6'

    Raises:
        InputError: a number that `split` refuses, or outside (1, 2] on data; unknown `extrapolates`; the noise on a
            grid that starts where a = 0.
    """
    order, beta = split(number)
    if extrapolates == "data" and order != 2:
        raise InputError(f"number must be in (1, 2] on data, where the step is that of DPM-Solver++ 2M, got {number}")
    held = Held(path, grid, "data", "log-snr") if extrapolates == "data" else _held(path, grid, extrapolates)
    rule = _plain(held, variable)
    first = order if extrapolates == "data" else 1  # the age at which there is a velocity

    def row(i: int, age: int) -> dict[str, Any]:
        if age < first or held.jumps(i):
            return _without(held, rule, i, min(order, age + 1))
        x, anchor, _ = _drift(held, i, beta)
        return {"after": i + 1, "x": x, "anchor": anchor, "H": beta * rule(i, min(order, age + 1)), "keep": HERE}

    options = {"extrapolates": extrapolates, "history": order, "depth": max(order - 1, first)}
    return assemble(f"hb-{number:g}", grid, row, grid.steps, **options)


def nesterov(
    path, grid: Grid, *, number: float | int = 3.8, extrapolates: str = "noise", variable: bool = True
) -> Plan:
    """Nesterov's momentum on Adams-Bashforth. `variable` as in `adams`.

    Example:
        >>> solver.nesterov(path, grid).history
        5

    Raises:
        InputError: a number that `split` refuses; unknown `extrapolates`; the noise on a grid that starts where a = 0.
    """
    order, beta = split(number)
    held = _held(path, grid, extrapolates)
    rule = _plain(held, variable)

    def row(i: int, age: int) -> dict[str, Any]:
        count = min(order, age + 1)
        if age == 0 or held.jumps(i):
            return _without(held, rule, i, count)
        x, anchor, step = _drift(held, i, beta)
        H = np.zeros(order + 1)
        H[:count] = beta * (2 - beta) * rule(i, count)
        before = rule(i - 1, min(order, age))
        H[1 : len(before) + 1] -= beta * step * before
        return {"after": i + 1, "x": x, "anchor": anchor, "H": H, "keep": HERE}

    options = {"extrapolates": extrapolates, "history": order + 1, "depth": order}
    return assemble(f"nesterov-{number:g}", grid, row, grid.steps, **options)


def split(number: float | int) -> tuple[int, float]:
    """Order and b of a number: 3.8 is (4, 0.8), 3 is (3, 1).

    Raises:
        InputError: number not in (0, 5], or less than 0.01 above a whole one.
    """
    if not 0 < number <= HIGHEST:
        raise InputError(f"number must be in (0, {HIGHEST}], got {number}")
    whole = math.floor(number)
    if number == whole:
        return whole, 1.0
    if number - whole < LEAST * (1 - 1e-9):
        raise InputError(f"number must be whole or at least {LEAST} above a whole one, got {number}")
    return whole + 1, number - whole


def generalized_weights(order: int, beta: float) -> np.ndarray:
    """Weights of v', its predecessor and so on in a GHVB step of unit length: V = sum_j g_j v'_(n-j).

    The series of Adams-Bashforth in D, times 1 + (1 - b) / b D, cut after `order` terms.
    """
    series = np.array([1, 1 / 2, 5 / 12, 3 / 8, 251 / 720])[:order]
    series = series + (1 - beta) / beta * np.r_[0, series[:-1]]
    powers = [[math.comb(k, j) * (-1) ** j for j in range(order)] for k in range(order)]
    return series @ np.array(powers, float)


def number_for(stiffness: float) -> float:
    """The largest number, in hundredths, whose GHVB is stable on u' = l u for steps of |l d| = `stiffness` (l d < 0).

    The bounds on the real axis join from order to order: 2 (2 - b) / b, 2 - b, 6 (2 - b) / (12 - b),
    3 (2 - b) / (11 - b) for orders 1 to 4. At least 0.01, at most 4.

    >>> number_for(0.1), number_for(1.0), number_for(3.0)
    (4.0, 2.0, 0.8)

    Raises:
        InputError: stiffness negative or not finite.
    """
    z = stiffness
    if not (math.isfinite(z) and z >= 0):
        raise InputError(f"stiffness must be a finite number, not negative, got {stiffness}")
    if z >= 2:
        number = 4 / (z + 2)
    elif z >= 1:
        number = 3 - z
    elif z >= 6 / 11:
        number = 2 + (12 - 12 * z) / (6 - z)
    else:
        number = 3 + (6 - 11 * z) / (3 - z) if z > 0.3 else 4.0
    return max(math.floor(100 * number + 1e-6) / 100, LEAST)


def _held(path, grid: Grid, extrapolates: str) -> Held:
    if extrapolates not in ("noise", "velocity"):
        raise InputError(f"extrapolates must be 'noise' or 'velocity', got {extrapolates!r}")
    return Held(path, grid, extrapolates, "noise-ratio" if extrapolates == "noise" else "time")


def _averages(age: int, count: int, beta: float) -> np.ndarray:
    """What the last `count` velocities are made of: row k has the weights of the `age` + 1 fields since the start."""
    back = age - np.arange(count)[:, None] - np.arange(age + 1)
    shares = np.where(back >= 0, (1 - beta) ** np.maximum(back, 0), 0.0)
    shares[:, 1:] *= beta
    return shares


def _plain(held: Held, variable: bool) -> Rule:
    """The multistep method that momentum is put on."""

    def rule(i: int, count: int) -> np.ndarray:
        nodes: Sequence[int] = range(i, i - count, -1)
        moments = held.moments(i, count)
        if held.field == "data" and count == 2:
            moments[1] = moments[0] / 2
        if held.field == "data" or variable:
            return held.weights(i, nodes, moments)
        return interpolate(np.asarray(nodes) - float(i), moments)

    return rule


def _without(held: Held, rule: Rule, i: int, count: int) -> dict[str, Any]:
    """Step i without momentum."""
    if held.jumps(i):
        x, H = held.step(i, [i])
        return {"after": i + 1, "x": x, "H": H, "keep": HERE}
    return {"after": i + 1, "x": held.linear(i), "H": rule(i, count), "keep": HERE}


def _drift(held: Held, i: int, beta: float) -> tuple[float, float, float]:
    """Coefficients of x and of the point before it in step i along the old velocity, and (1 - b) times the ratio of
    the two steps."""
    step = (1 - beta) * held.moments(i, 1)[0] / held.moments(i - 1, 1)[0]
    return held.linear(i) + step, -step * held.linear(i - 1), step
