"""DPM-Solver-v3: exponential steps around a linear model of the network, fitted to it beforehand.

With X = x / a, lam = log(a / s) and the data prediction m the flow is dX/dlam = m - X = -(l X + f), where

    f = (1 - l) X - m,    df/dlam = s f + b + what the fit leaves

and l, s, b are functions of lam (`ModelStatistics`). With L' = l, S' = s and all integrals from the start of the step,

    X' = e^-L (X - int e^(L + S) (g + int e^-S b)),    g = e^-S f - int e^-S b,

where polynomials in lam through past g give the orders; a perfect fit leaves them nothing. l = 1, s = 0 (b = 0) holds
the data, l = 0, s = -1 the noise.

Reference: Zheng et al. 2023. Their history is the noise, rewritten when a corrector moves x so that f stays; here it is
f itself. Their text has the half corrector in the cleaner half of the steps, their code in the noisier one.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid, check_count
from kinema.generate.solver.held import interpolate
from kinema.generate.solver.model_statistics import ModelStatistics
from kinema.generate.solver.plan import HERE, Plan, assemble, check_order

HIGHEST = 4
CORRECTORS = {
    "none": lambda t: False,
    "full": lambda t: True,
    "early": lambda t: t < 0.5,
    "late": lambda t: t >= 0.5,
}


def dpm_solver_v3(
    path,
    grid: Grid,
    *,
    statistics: ModelStatistics | str | None = None,
    order: int = 3,
    corrector: str = "full",
    pseudo_predictor: bool = False,
    pseudo_corrector: bool = False,
    lower_final: bool = True,
    refine: int = 4,
) -> Plan:
    """DPM-Solver-v3 of order 1 to 4 with the statistics of a model, or the file or folder that holds them.

    `corrector`: "full", "none", or only at times t < 0.5 ("early") or from 0.5 on ("late"), for strong guidance. Of the
    two pseudo methods each derivative takes as few points as it needs, which is steadier in 5 steps; the pseudo
    corrector's order is one higher. Without statistics the solver is DPM-Solver++ with exact coefficients. Integrals
    are trapezoid sums over the table's steps, each divided in `refine` (the authors': 1).

    Example:
        >>> plan = solver.dpm_solver_v3(path, grid, statistics=estimate_statistics(gen, data, key=key))

    Raises:
        InputError: order not in 1 .. 4; an unknown corrector; a grid that starts where a = 0 or leaves the statistics.
    """
    check_order(order, HIGHEST)
    check_count("refine", refine)
    if corrector not in CORRECTORS:
        raise InputError(f"corrector must be one of {', '.join(CORRECTORS)}, got {corrector!r}")
    if grid.a[0] == 0:
        raise InputError(f"the grid starts at times[0]={grid.times[0]:g}, where the path holds no data; start it later")
    if isinstance(statistics, str):
        statistics = ModelStatistics.load(statistics)
    notes = () if statistics is not None else ("no statistics given: DPM-Solver++ with exact coefficients",)
    fitted = Fitted(grid, _of_data(grid) if statistics is None else statistics, refine)
    corrects, history = CORRECTORS[corrector], order + (corrector != "none" and pseudo_corrector)

    def past(i: int, age: int) -> int:
        return min(order, age + 1, grid.steps - i if lower_final else order)

    def row(i: int, age: int) -> dict[str, Any]:
        row = {"after": i + 1, "A": (1 - fitted.linear[i]) / grid.a[i], "B": np.full(fitted.shape, -1.0)}
        predict, correct = (np.zeros((history, *fitted.shape)) for _ in range(2))
        count = past(i, age)
        x, predict[:count], d = fitted.step(i, range(i, i - count, -1), pseudo_predictor)
        count = past(i - 1, age - 1) + pseudo_corrector if age else 0
        if count < 2 or not corrects(grid.times[i]):
            return row | {"x": x, "H": list(predict), "d": (d, 0.0), "keep": HERE}
        nodes = [i - 1, i, *range(i - 2, i - count, -1)]
        anchor, weights, kept = fitted.step(i - 1, nodes, pseudo_corrector)
        correct[:count] = weights[np.argsort(nodes)[::-1]]
        H, moved = x * correct + predict, x * kept + d
        return row | {"anchor": x * anchor, "H": list(H), "d": (moved, kept), "keep": (0.0, anchor, list(correct))}

    options = {"extrapolates": "data", "history": history, "depth": order + (corrector != "none") - 1, "notes": notes}
    return assemble(f"dpm-v3-{order}", grid, row, grid.steps, **options)


class Integrals(NamedTuple):
    """Of one step, from its start: L, S, int e^-S b, the E_k = int e^(L + S) (lam - lam_0)^k / k! `(HIGHEST + 1, ..)`,
    and int e^(L + S) int e^-S b."""

    L: np.ndarray
    S: np.ndarray
    bias: np.ndarray
    E: np.ndarray
    drift: np.ndarray


class Fitted:
    """The statistics on a grid: l at its points, and the integrals of its steps."""

    def __init__(self, grid: Grid, statistics: ModelStatistics, refine: int):
        self.grid, self.shape = grid, statistics.shape
        self.ends = bool(np.isfinite(grid.log_snr[-1]))
        self.lam = grid.log_snr if self.ends else grid.log_snr[:-1]
        self.linear = statistics.at(self.lam)[0]
        self.integrals = [_integrals(statistics, *ends, refine) for ends in zip(self.lam[:-1], self.lam[1:])]

    def step(self, i: int, nodes: Sequence[int], pseudo: bool) -> tuple[Any, np.ndarray, Any]:
        """Coefficients of x_i and of f at `nodes` (i first) in step i, and the constant."""
        grid = self.grid
        if i == len(self.integrals):  # onto s = 0: the data prediction (1 - l) X - f
            weights = np.zeros((len(nodes), *self.shape))
            weights[0] = -grid.a[i + 1]
            return grid.a[i + 1] / grid.a[i] * (1 - self.linear[i]), weights, 0.0
        own = self.integrals[i]
        weights = _weights(self.lam[list(nodes)] - self.lam[i], own.E, pseudo)
        scale = -grid.a[i + 1] * np.exp(-own.L)
        ratios, biases = zip(*(self._past(i, j) for j in nodes))
        constant = own.drift - sum(w * bias for w, bias in zip(weights, biases))
        return -scale / grid.a[i], scale * weights * np.stack(ratios), scale * constant

    def _past(self, i: int, j: int) -> tuple[Any, Any]:
        """e^(S_i - S_j), and e^S_i times the integral of e^-S b from i to j."""
        if j > i:
            return np.exp(-self.integrals[i].S), self.integrals[i].bias
        ratio, bias = np.ones(self.shape), np.zeros(self.shape)
        for before in reversed(self.integrals[j:i]):
            ratio = ratio * np.exp(before.S)
            bias = bias - ratio * before.bias
        return ratio, bias


def _weights(positions: np.ndarray, E: np.ndarray, pseudo: bool) -> np.ndarray:
    """w with sum_k E_k g^(k) = sum_j w_j g_j, for the derivatives g^(k) at 0 of polynomials through the g_j."""
    count = len(positions)
    scaled = np.stack([math.factorial(k) * E[k] for k in range(count)])
    if not pseudo:
        unit = np.abs(positions).max() or 1.0
        moments = (scaled.reshape(count, -1).T / unit ** np.arange(count)).T
        return interpolate(positions / unit, moments).reshape(scaled.shape)
    weights = np.zeros_like(scaled)
    for k in range(count):
        for j in range(k + 1):
            others = np.delete(positions[: k + 1], j)
            weights[j] += scaled[k] / np.prod(positions[j] - others)
    return weights


def _integrals(statistics: ModelStatistics, low: float, high: float, refine: int) -> Integrals:
    table = statistics.lam
    between = table[(table > low + 1e-9) & (table < high - 1e-9)]
    nodes = np.r_[low, between, high]
    nodes = np.interp(np.arange(refine * (len(nodes) - 1) + 1) / refine, np.arange(len(nodes)), nodes)
    linear, scaling, shift = statistics.at(nodes)
    widths = np.diff(nodes).reshape(-1, *(1,) * (linear.ndim - 1))

    def running(values: np.ndarray) -> np.ndarray:
        parts = 0.5 * widths * (values[1:] + values[:-1])
        return np.concatenate([np.zeros_like(values[:1]), np.cumsum(parts, 0)])

    L, S = running(linear), running(scaling)
    bias, growth = running(np.exp(-S) * shift), np.exp(L + S)
    offset = (nodes - low).reshape(-1, *(1,) * (linear.ndim - 1))
    E = np.stack([running(growth * offset**k / math.factorial(k))[-1] for k in range(HIGHEST + 1)])
    return Integrals(L[-1], S[-1], bias[-1], E, running(growth * bias)[-1])


def _of_data(grid: Grid) -> ModelStatistics:
    """l = 1, s = b = 0 over a grid: the data prediction is held."""
    lam = grid.log_snr[np.isfinite(grid.log_snr)]
    table = np.unique(np.r_[np.linspace(lam[0] - 1e-3, lam[-1] + 1e-3, 20_001)])
    return ModelStatistics(table, np.ones_like(table), np.zeros_like(table), np.zeros_like(table))
