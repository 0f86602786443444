"""Adams-Bashforth: PLMS with fixed weights, LMS with variable ones, in the noise ratio or in time.

With the noise prediction e and kappa = s / a the flow is x' / a' = x / a + int e dkappa; past predictions extrapolate
e. Fixed weights assume equal steps in kappa; variable ones integrate the polynomial through the real grid and keep
their order. With the velocity the same in t: x' = x + int v dt.

Reference: Liu et al. 2022 (PLMS); Karras et al. 2022, Crowson 2022 (LMS).
"""

from collections.abc import Sequence

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.held import Held, interpolate
from kinema.generate.solver.multistep import multistep
from kinema.generate.solver.plan import Plan


def adams(
    path, grid: Grid, *, order: int = 4, extrapolates: str = "noise", variable: bool = True, start: str = "euler"
) -> Plan:
    """Adams-Bashforth of order 1 to 5 on the noise (in kappa) or the velocity (in t).

    `variable=False` has the weights of equal steps whatever the grid (PLMS), and the order only there. `start="heun"`
    corrects the first point, which lifts the order of the whole from 2 to 3 at no further call.

    Raises:
        InputError: order not in 1 .. 5; unknown `extrapolates` or `start`; the noise on a grid that starts where a = 0.
    """
    if extrapolates not in ("noise", "velocity"):
        raise InputError(f"extrapolates must be 'noise' or 'velocity', got {extrapolates!r}")
    held = Held(path, grid, extrapolates, "noise-ratio" if extrapolates == "noise" else "time")

    def fixed(i: int, nodes: Sequence[int]) -> tuple[float, np.ndarray]:
        weights = interpolate(np.asarray(nodes) - float(i), held.moments(i, len(nodes)))
        return held.linear(i), weights

    name = f"{'lms' if variable else 'plms'}-{order}"
    rule = held.step if variable else fixed
    return multistep(name, grid, rule, extrapolates=extrapolates, order=order, highest=5, start=start)
