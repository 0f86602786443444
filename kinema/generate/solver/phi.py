"""Integrals of exponential integrators, free of cancellation at every step length.

phi2(h) = (e^-h - 1) / h + 1 and phi3(h) = (e^-h - 1 + h) / h^2 - 1/2. Evaluated as written they lose all digits below
h = 1e-6; short steps use their series.
"""

import math

import numpy as np


def phi2(h: float) -> float:
    """int_0^1 (1 - e^-(h (1 - u))) du = h/2 - h^2/6 + ..; 1 at h = inf."""
    if np.isinf(h):
        return 1.0
    return _series(h, 2) if abs(h) < 0.3 else np.expm1(-h) / h + 1


def phi3(h: float) -> float:
    """(e^-h - 1 + h) / h^2 - 1/2 = -h/6 + h^2/24 - ..; -1/2 at h = inf."""
    if np.isinf(h):
        return -0.5
    return _series(h, 3) if abs(h) < 0.3 else (np.expm1(-h) + h) / h**2 - 0.5


def _series(h: float, order: int) -> float:
    """The tail of e^-h from h^order on, divided by (-h)^(order - 1)."""
    return -sum((-h) ** (k - order + 1) / math.factorial(k) for k in range(order, order + 18)) * (-1) ** order
