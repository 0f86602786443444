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

    The order grows from 1 as the history fills. `start="heun"` corrects the first two points by their own predictions,
    for one more evaluation: without it a method of order above 2 is of order 2 as a whole. `lower_final` brings the
    order back to 1 at the end. `noise(i)` is what step i adds.

    Raises:
        InputError: order not in 1 .. highest; an unknown start; `start="heun"` in a method that adds noise.
    """
    check_order(order, highest)
    if start not in ("euler", "heun"):
        raise InputError(f"start must be 'euler' or 'heun', got {start!r}")
    noises = [noise(i) for i in range(grid.steps)]
    if start == "heun" and any(noises):
        raise InputError("start='heun' corrects points without noise; use start='euler' with eta > 0")
    extra = int(start == "heun" and order > 1 and grid.steps > 2)

    def history(nodes: Sequence[int], weights: np.ndarray) -> np.ndarray:
        """Weights by age. A Heun start leaves the prediction at the uncorrected point 1 behind, unused."""
        H = np.zeros(max(nodes[0] - node for node in nodes) + 1 + extra)
        H[[nodes[0] - node + extra * (node == 0 < nodes[0]) for node in nodes]] = weights
        return H

    def plain(i: int, age: int) -> dict[str, Any]:
        count = min(order, age + 1, grid.steps - i if lower_final else order)
        nodes = [i - back for back in range(count)]
        x, weights = rule(i, nodes)
        return {"after": i + 1, "x": x, "H": history(nodes, weights)[: order + extra], "c": noises[i]}

    def row(j: int, age: int) -> dict[str, Any]:
        i, age = j - extra, min(age, max(j - extra, 0))
        if extra and j == 0:
            return plain(0, 0) | {"keep": HERE, "whole": False}
        if extra and j == 1:
            anchor, weights = rule(0, [1, 0])
            return {"after": 1, "t": grid.times[1], "x": 0.0, "anchor": anchor, "H": weights}
        if extra and i == 1:
            return plain(i, age) | {"keep": HERE}
        if extra and i == 2 and age == 2 and order > 2:
            return {"after": 3} | _corrected(rule, history)
        return plain(i, age)

    return assemble(
        name, grid, row, grid.steps + extra, extrapolates=extrapolates, history=order + extra, depth=order - 1
    )


def _corrected(rule: Rule, history: Callable) -> dict[str, Any]:
    """Step 2 from the point 2 that its own prediction has corrected."""
    nodes = [2, 1, 0]
    anchor, correction = rule(1, nodes)
    x, weights = rule(2, nodes)
    return {"x": 0.0, "anchor": x * anchor, "H": history(nodes, x * correction + weights)}
