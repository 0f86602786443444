"""Adams-Bashforth in the noise ratio kappa = s / a: PLMS with fixed weights, LMS with variable ones.

With the noise prediction e the flow is x' / a' = x / a + int e dkappa; past predictions extrapolate e. Fixed weights
assume equal steps in kappa; variable ones integrate the Lagrange polynomials of the real grid and keep their order.

Reference: Liu et al. 2022 (PLMS); Karras et al. 2022, Crowson 2022 (LMS).
"""

import numpy as np

from kinema.generate.solver.exponential import euler_step
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.plan import Draft, Plan, check_order, orders

FIXED = {
    1: np.array([1.0]),
    2: np.array([3, -1]) / 2,
    3: np.array([23, -16, 5]) / 12,
    4: np.array([55, -59, 37, -9]) / 24,
    5: np.array([1901, -2774, 2616, -1274, 251]) / 720,
}


def adams(path, grid: Grid, *, order: int = 4, variable: bool = True) -> Plan:
    """Adams-Bashforth of order 1 to 5; `variable=False` is PLMS, whose weights suit equal steps in kappa only.

    Raises:
        InputError: order not in 1 .. 5; a grid that starts where a = 0.
    """
    check_order(order, 5)
    draft = Draft(f"{'lms' if variable else 'plms'}-{order}", grid, extrapolates="noise", history=order)
    kappa = grid.noise_ratio
    for i, now in enumerate(orders(order, grid.steps)):
        x, dkappa = euler_step(grid, i, "noise")
        if variable:
            weights = lagrange_integrals(kappa[i::-1][:now], kappa[i], kappa[i + 1]) / (kappa[i + 1] - kappa[i])
        else:
            weights = FIXED[now]
        draft.add(i + 1, x, dkappa * weights)
    return draft.plan()


def lagrange_integrals(nodes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Integrals from low to high of the Lagrange polynomials of the nodes, exact by Gauss-Legendre."""
    points, weights = np.polynomial.legendre.leggauss(max(1, (len(nodes) + 1) // 2))
    points = low + (high - low) * (points + 1) / 2
    basis = [np.prod([(points - q) / (p - q) for q in np.delete(nodes, j)], axis=0) for j, p in enumerate(nodes)]
    return np.array([np.sum(weights * np.ones_like(points) * value) for value in basis]) * (high - low) / 2
