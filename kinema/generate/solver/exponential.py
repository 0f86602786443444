"""Exponential solvers in log-SNR: Euler (DDIM), DPM-Solver, DPM-Solver++, its SDE form, DEIS.

With the data prediction m and lam = log(a / s) the flow is x' / s' = x / s + int e^lam m dlam, exact in its linear
part; polynomials in lam through past predictions give the orders. All of it is `Held`; the published solvers differ in
one or two moments.

Reference: Song et al. 2021 (DDIM); Lu et al. 2022 (DPM-Solver, DPM-Solver++); Zhang & Chen 2023 (DEIS).
"""

from collections.abc import Sequence

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.held import Held
from kinema.generate.solver.multistep import multistep
from kinema.generate.solver.plan import Draft, Plan, check_order


def euler(path, grid: Grid, *, extrapolates: str = "data") -> Plan:
    """First order, exact for a constant prediction: DDIM without noise.

    `extrapolates` chooses what is held constant over a step: "data" or "noise" (the same method), or "velocity", which
    is plain Euler in t.

    Raises:
        InputError: unknown `extrapolates`; the noise on a grid that starts where a = 0.
    """
    held = Held(path, grid, extrapolates, "time" if extrapolates == "velocity" else "log-snr")
    draft = Draft("euler", grid, extrapolates=extrapolates)
    for i in range(grid.steps):
        x, H = held.step(i, [i])
        draft.add(i + 1, x, H)
    return draft.plan()


def dpmpp(
    path,
    grid: Grid,
    *,
    order: int = 2,
    form: str = "data",
    eta: float = 0.0,
    variant: str = "midpoint",
    exact: bool = True,
    lower_final: bool = False,
    start: str = "euler",
) -> Plan:
    """DPM-Solver++ multistep of order 1 to 3; `form="noise"` is DPM-Solver, for mild problems and many steps only.

    `eta` > 0 solves the SDE with eta times the noise variance of the reversed noising process (1: SDE-DPM-Solver++).
    `variant` of order 2: "midpoint" (the authors' default) or "heun" (exact integral of the line). `exact=False` keeps
    the published third-order coefficient, half of the right one, which makes the method second order.

    Raises:
        InputError: order not 1, 2 or 3; unknown form, variant or start; eta negative.
    """
    check_order(order, 3)
    if variant not in ("midpoint", "heun"):
        raise InputError(f"variant must be 'midpoint' or 'heun', got {variant!r}")
    if form not in ("data", "noise"):
        raise InputError(f"form must be 'data' or 'noise', got {form!r}")
    held = Held(path, grid, form, "log-snr", eta)

    def rule(i: int, nodes: Sequence[int]) -> tuple[float, np.ndarray]:
        moments = held.moments(i, len(nodes))
        if len(nodes) == 2 and variant == "midpoint":
            moments[1] = moments[0] / 2
        if len(nodes) == 3 and not exact:
            moments[2] /= 2
        return held.linear(i), held.weights(i, nodes, moments)

    name = f"{'sde-' if eta else ''}{'dpmpp' if form == 'data' else 'dpm'}-{order}m"
    options = {"order": order, "highest": 3, "start": start, "lower_final": lower_final}
    return multistep(name, grid, rule, extrapolates=form, noise=held.noise, **options)


def deis(path, grid: Grid, *, order: int = 3, lower_final: bool = False, start: str = "euler") -> Plan:
    """DEIS of order 1 to 5 with polynomials in log kappa: the exact noise form of DPM-Solver, of any order.

    Raises:
        InputError: order not in 1 .. 5; unknown start; a grid that starts where a = 0.
    """
    held = Held(path, grid, "noise", "log-snr")
    options = {"order": order, "highest": 5, "start": start, "lower_final": lower_final}
    return multistep(f"deis-{order}", grid, held.step, extrapolates="noise", **options)
