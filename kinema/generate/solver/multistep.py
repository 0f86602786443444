"""Multistep solvers: one evaluation a step and a polynomial through past ones, with their start-up and restart."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.plan import HERE, Plan, assemble, check_order

Rule = Callable[[int, Sequence[int]], tuple[float, np.ndarray]]
"""(step i, grid points whose predictions it uses) -> coefficient of x and of those predictions."""


def multistep(
    name: str,
    grid: Grid,
    rule: Rule,
    *,
    extrapolates: str,
    order: int,
    highest: int,
    start: str = "euler",
    lower_final: bool = False,
    noise: Callable[[int], float] = lambda i: 0.0,
) -> Plan:
    """The plan in which step i goes through the last `order` predictions.

    The order grows from 1 as the history fills. With `start="heun"` the first prediction at point 1 also corrects that
    point before the next step, at no further call: without it a method of order above 2 is of order 2 as a whole, with
    it of order 3. `lower_final` brings the order back to 1 at the end. `noise(i)` is what step i adds.

    Raises:
        InputError: order not in 1 .. highest; an unknown start; `start="heun"` in a method that adds noise.
    """
    check_order(order, highest)
    if start not in ("euler", "heun"):
        raise InputError(f"start must be 'euler' or 'heun', got {start!r}")
    noises = [noise(i) for i in range(grid.steps)]
    if start == "heun" and any(noises):
        raise InputError("start='heun' corrects a point without noise; use start='euler' with eta > 0")
    corrects = start == "heun" and order > 1

    def row(i: int, age: int) -> dict[str, Any]:
        count = min(order, age + 1, grid.steps - i if lower_final else order)
        x, H = rule(i, [i - back for back in range(count)])
        plain = {"after": i + 1, "x": x, "H": H, "c": noises[i]}
        if corrects and i == 0:
            return plain | {"keep": HERE}
        if corrects and i == 1 and age == 1:
            anchor, correction = rule(0, [1, 0])
            H = x * correction + np.r_[H, np.zeros(2 - len(H))]
            return plain | {"x": 0.0, "anchor": x * anchor, "H": H}
        return plain

    options = {"extrapolates": extrapolates, "history": order, "depth": order - 1}
    return assemble(name, grid, row, grid.steps, **options)
