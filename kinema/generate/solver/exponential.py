"""Exponential solvers in log-SNR: Euler (DDIM), DPM-Solver++ 2M and 3M.

With the data prediction m and lam = log(a / s) the flow is x' / s' = x / s + int e^lam m dlam, exact in its linear
part. With h = lam' - lam, polynomials in lam through past predictions give the orders.

Reference: Song et al. 2021 (DDIM); Lu et al. 2022 (DPM-Solver++).
"""

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.phi import phi2, phi3
from kinema.generate.solver.plan import Draft, Plan, check_order, orders


def euler(path, grid: Grid, *, extrapolates: str = "data") -> Plan:
    """First order, exact for a constant prediction: DDIM without noise.

    `extrapolates` chooses what is held constant over a step: "data" or "noise" (the same method), or "velocity", which
    is plain Euler in t.
    """
    draft = Draft("euler", grid, extrapolates=extrapolates)
    for i in range(grid.steps):
        x, h = euler_step(grid, i, extrapolates)
        draft.add(i + 1, x, [h])
    return draft.plan()


def dpmpp(path, grid: Grid, *, order: int = 2, variant: str = "midpoint", exact: bool = True, lower_final: bool = False) -> Plan:
    """DPM-Solver++ multistep of order 1 to 3, on the data prediction.

    `variant` of order 2: "midpoint" (the authors' default) or "heun" (exact integral of the line). `exact=False` keeps
    the published third-order coefficient, half of the right one, which makes the method second order.

    Raises:
        InputError: order not 1, 2 or 3; unknown variant.
    """
    check_order(order, 3)
    if variant not in ("midpoint", "heun"):
        raise InputError(f"variant must be 'midpoint' or 'heun', got {variant!r}")
    draft = Draft(f"dpmpp-{order}m", grid, extrapolates="data", history=order)
    lam = grid.log_snr
    for i, now in enumerate(orders(order, grid.steps, lower_final=lower_final)):
        if grid.s[i + 1] == 0:
            now = 1
        x, A = euler_step(grid, i, "data")
        h, H, a = lam[i + 1] - lam[i], np.zeros(order), grid.a[i + 1]
        H[0] = A
        if now >= 2:
            r0 = (lam[i] - lam[i - 1]) / h
            slope = A / 2 if (variant == "midpoint" and now == 2) else a * phi2(h)
            if now == 2:
                H[:2] += slope / r0, -slope / r0
            else:
                r1 = (lam[i - 1] - lam[i - 2]) / h
                first, second = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
                curve = (first - second) / (r0 + r1)
                H += slope * (first + r0 * curve) - a * phi3(h) * curve * (2 if exact else 1)
        draft.add(i + 1, x, H)
    return draft.plan()


def euler_step(grid: Grid, i: int, extrapolates: str) -> tuple[float, float]:
    """Coefficients of x and of the held field over step i.

    Raises:
        InputError: the noise is held where a = 0 (its ratio to data is infinite).
    """
    a, s, a_next, s_next = grid.a[i], grid.s[i], grid.a[i + 1], grid.s[i + 1]
    if extrapolates == "data":
        return s_next / s, a_next - a * s_next / s
    if extrapolates == "noise":
        if a == 0:
            raise InputError(f"the noise cannot be held at times[{i}]={grid.times[i]:g}, where a = 0; extrapolate data")
        return a_next / a, s_next - s * a_next / a
    return 1.0, grid.times[i + 1] - grid.times[i]
