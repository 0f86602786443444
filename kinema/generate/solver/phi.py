"""Moments of a decaying exponential, the integrals of every exponential integrator, at full precision for any step.

    J_q(z) = int_0^1 z e^(-z (1 - u)) u^q du,    J_0 = 1 - e^-z,    J_q = 1 - (q / z) J_(q-1)

The recursion loses digits where z is small (all of them at 1e-6), so short steps sum the series.
"""

import math

import numpy as np


def decay_moments(z: float, count: int) -> np.ndarray:
    """J_0 .. J_(count-1) `(count,)` at any finite z, or at z = inf, where all are 1."""
    if z == np.inf:
        return np.ones(count)
    if abs(z) < 1:
        return np.array([_series(z, q) for q in range(count)])
    values = [-np.expm1(-z)]
    for q in range(1, count):
        values.append(1 - q / z * values[-1])
    return np.array(values[:count])


def _series(z: float, q: int) -> float:
    return sum(-((-z) ** (k + 1)) * math.factorial(q) / math.factorial(q + 1 + k) for k in range(20))
