"""UniPC: a predictor whose next evaluation also corrects the point it was made at, for no extra call.

Row i corrects x_i from the anchor x_(i-1) with the prediction just made at x_i, then predicts x_(i+1) from it. Both are
polynomials in log-SNR through the data predictions (`Held`); order 2 of the predictor and order 1 of the corrector
shorten the integral of the line to B / 2, with B = h ("bh1") or 1 - e^-h ("bh2").

Reference: Zhao et al. 2023.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.held import Held
from kinema.generate.solver.plan import HERE, Plan, assemble, check_order


def unipc(
    path, grid: Grid, *, order: int = 3, variant: str = "bh2", corrector: bool = True, lower_final: bool = True
) -> Plan:
    """UniPC of order 1 to 4 (the corrector adds one), data form; `variant` "bh1", "bh2" or "exact" (no shortening).

    Raises:
        InputError: order not in 1 .. 4; unknown variant.
    """
    check_order(order, 4)
    if variant not in ("bh1", "bh2", "exact"):
        raise InputError(f"variant must be 'bh1', 'bh2' or 'exact', got {variant!r}")
    held, lam = Held(path, grid, "data", "log-snr"), grid.log_snr

    def rule(i: int, nodes: Sequence[int]) -> tuple[float, np.ndarray]:
        moments = held.moments(i, len(nodes))
        h = lam[i + 1] - lam[i]
        if len(nodes) == 2 and variant != "exact" and np.isfinite(h):
            moments[1] = (moments[0] if variant == "bh2" else grid.a[i + 1] * h) / 2
        return held.linear(i), held.weights(i, nodes, moments)

    def past(i: int, age: int) -> int:
        """Predictions that the predictor of step i goes through."""
        return min(order, age + 1, grid.steps - i if lower_final else order)

    def row(j: int, age: int) -> dict[str, Any]:
        predict, correct = np.zeros(order + 1), np.zeros(order + 1)
        count = past(j, age)
        x, predict[:count] = rule(j, [j - back for back in range(count)])
        if not corrector:
            return {"after": j + 1, "x": x, "H": predict[:order]}
        if age == 0:
            return {"after": j + 1, "x": x, "H": predict, "keep": HERE}
        count = past(j - 1, age - 1) + 1
        anchor, correct[:count] = rule(j - 1, [j - back for back in range(count)])
        keep = (0.0, anchor, correct)
        return {"after": j + 1, "anchor": x * anchor, "H": x * correct + predict, "keep": keep}

    options = {"extrapolates": "data", "history": order + corrector, "depth": order - 1 + corrector}
    return assemble(f"unipc-{order}", grid, row, grid.steps, **options)
