"""What all solvers here share: a step that is exact while one field of the path is a polynomial.

    held field   variable tau      x' =
    data m       lam = log(a / s)  (s' / s) x + s' int e^lam m dlam
    noise e      lam               (a' / a) x - a' int e^-lam e dlam
    noise e      kappa = s / a     (a' / a) x + a' int e dkappa
    velocity v   t                 x + int v dt

Solvers differ in the field, the variable and the past predictions that the polynomial goes through, and in nothing
else: the weights w of predictions at tau_m solve sum_m w_m r_m^q = mu_q, with r_m = (tau_m - tau) / (tau' - tau) and
mu_q the integral of r^q. Primes mark the end of the step. With `eta` > 0 the step is that of the SDE whose noise
variance is eta times that of the reversed noising process, exact in the same sense.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.phi import decay_moments

VARIABLES = {"data": ("log-snr",), "noise": ("log-snr", "noise-ratio"), "velocity": ("time",)}


@dataclass(frozen=True)
class Held:
    """One field held as a polynomial in one variable over the steps of a grid.

    Raises:
        InputError: a field or variable that is not in the table above; `eta` negative, or not 0 with another variable
            than "log-snr"; the noise held from a time where a = 0 (its ratio to data is infinite there).
    """

    path: Any
    grid: Grid
    field: str
    variable: str
    eta: float = 0.0

    def __post_init__(self):
        if self.variable not in VARIABLES.get(self.field, ()):
            choices = ", ".join(f"{field} in {' or '.join(names)}" for field, names in VARIABLES.items())
            raise InputError(f"cannot hold {self.field!r} in {self.variable!r}; known: {choices}")
        if not (np.isfinite(self.eta) and self.eta >= 0) or (self.eta > 0 and self.variable != "log-snr"):
            raise InputError(f"eta must be 0, or positive where the variable is log-snr, got {self.eta}")
        if self.field == "noise" and self.grid.a[0] == 0:
            raise InputError(
                f"the noise cannot be held at times[0]={self.grid.times[0]:g}, where the path holds no data (a = 0):"
                " extrapolate data or velocity, or start the grid later"
            )

    @cached_property
    def tau(self) -> np.ndarray:
        grid = self.grid
        return {"log-snr": grid.log_snr, "noise-ratio": grid.noise_ratio, "time": grid.times}[self.variable]

    def step(self, i: int, nodes: Sequence[int]) -> tuple[float, np.ndarray]:
        """Coefficients of x and of the field at the grid points `nodes` (i among them) in step i."""
        return self.linear(i), self.weights(i, nodes, self.moments(i, len(nodes)))

    def linear(self, i: int) -> float:
        """The coefficient of x in step i."""
        a, s, a_next, s_next = self._ends(i)
        if self.jumps(i):
            return self._jump(i)[0]
        if self.field == "data":
            return s_next / s * (np.exp(-self.eta * self._length(i)) if self.eta else 1.0)
        return a_next / a if self.field == "noise" else 1.0

    def moments(self, i: int, count: int) -> np.ndarray:
        """mu_0 .. mu_(count-1) of step i; a step of infinite length has only mu_0, the others are 0."""
        a, s, a_next, s_next = self._ends(i)
        h = self._length(i)
        if not np.isfinite(h) or self.jumps(i):
            base = self._jump(i)[1] if self.jumps(i) else a_next - (0.0 if self.eta else a * s_next / s)
            return np.r_[base, np.zeros(count - 1)]
        if self.field == "data":
            return a_next * decay_moments((1 + self.eta) * h, count)
        if self.variable == "log-snr":
            return (1 + self.eta) * s_next * decay_moments(-h, count)
        whole = s_next - s * a_next / a if self.field == "noise" else h
        return whole / np.arange(1, count + 1)

    def weights(self, i: int, nodes: Sequence[int], moments: np.ndarray) -> np.ndarray:
        """Weights of the field at `nodes` that give the moments. Nodes infinitely far off get none; in a step of
        infinite length, or one that jumps to the data, all the weight is on i."""
        points, weights = np.asarray(nodes), np.zeros(len(nodes))
        if self.jumps(i) or not np.isfinite(self._length(i)):
            weights[points == i] = moments[0]
            return weights
        near = np.isfinite(self.tau[points])
        positions = (self.tau[points[near]] - self.tau[i]) / self._length(i)
        weights[near] = interpolate(positions, moments[: near.sum()])
        return weights

    def noise(self, i: int) -> float:
        """Standard deviation of the noise that step i adds."""
        if self.eta == 0 or self.jumps(i):
            return 0.0
        h, s_next = self._length(i), self.grid.s[i + 1]
        if self.field == "data":
            return s_next * np.sqrt(-np.expm1(-2 * self.eta * h))
        return s_next * np.sqrt(self.eta * np.expm1(2 * h))

    def _ends(self, i: int) -> tuple[float, float, float, float]:
        grid = self.grid
        return grid.a[i], grid.s[i], grid.a[i + 1], grid.s[i + 1]

    def _length(self, i: int) -> float:
        tau = self.tau
        return tau[i + 1] - tau[i]

    def jumps(self, i: int) -> bool:
        """Whether step i lands on the prediction of data, noise-free: the last one, where tau' is infinite or, in
        time, not to be had."""
        onto_data = i == self.grid.steps - 1 and self.grid.s[-1] == 0
        return bool(onto_data) and (self.variable == "log-snr" or (self.variable == "time" and self.grid.clean))

    def _jump(self, i: int) -> tuple[float, float]:
        """x' = a' m, in terms of x and the held field."""
        a, s, a_next, _ = self._ends(i)
        if self.field == "data":
            return 0.0, a_next
        if self.field == "noise":
            return a_next / a, -s * a_next / a
        from kinema.generate.fields import convert
        from kinema.generate.generator import moments_in_float64

        to_data = convert("velocity", "data", moments_in_float64(self.path, self.grid.times[i : i + 1]))
        return a_next * to_data.P[0], a_next * to_data.Q[0]


def interpolate(positions: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The weights w with sum_m w_m r_m^q = moment_q at the positions r."""
    return np.linalg.solve(np.vander(positions, increasing=True).T, moments)
