"""Solvers by name, each with a grid that suits it: what the command line uses."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

from kinema.errors import InputError, choose, unknown
from kinema.generate.solver.adams import adams
from kinema.generate.solver.dpm_solver_v3 import dpm_solver_v3
from kinema.generate.solver.exponential import deis, dpmpp, euler
from kinema.generate.solver.grids import GRIDS, Grid, check_count
from kinema.generate.solver.langevin import predictor_corrector
from kinema.generate.solver.momentum import ghvb, heavy_ball, nesterov
from kinema.generate.solver.plan import Plan
from kinema.generate.solver.runge_kutta import churn, heun, restart
from kinema.generate.solver.stochastic import ancestral, euler_maruyama, reverse_diffusion
from kinema.generate.solver.unipc import unipc

LIMIT = 7.0  # default grids in log-SNR stay within +-7: a thousandth of noise or data is left there


@dataclass(frozen=True)
class Named:
    """`build(path, grid, **options) -> Plan` with the options that its name stands for.

    A path that starts without data (a = 0, flow matching) takes `empty` options too and the grid `empty_grid`: the
    noise cannot be extrapolated from there.
    """

    build: Callable[..., Plan]
    options: Mapping[str, Any] = default(default_factory=dict)
    empty: Mapping[str, Any] = default(default_factory=dict)
    grid: str = "karras"
    empty_grid: str = "uniform-time"

    def __call__(self, path, grid: Grid, **options) -> Plan:
        return self.build(path, grid, **{**self.options, **options})


def corrected(
    path, grid: Grid, *, rule: str = "annealed", snr: float = 0.16, corrections: int = 1, eta: float = 1.0
) -> Plan:
    """Ancestral steps with Langevin corrections before each."""
    return predictor_corrector(path, ancestral(path, grid, eta=eta), rule=rule, snr=snr, corrections=corrections)


VELOCITY = {"extrapolates": "velocity"}
SOLVERS: dict[str, Named] = {
    "euler": Named(euler),
    "ddim": Named(ancestral, {"eta": 0.0}),
    "ancestral": Named(ancestral, {"eta": 1.0}),
    "heun": Named(heun, empty=VELOCITY),
    "churn": Named(churn, empty=VELOCITY),
    "restart": Named(restart, empty=VELOCITY),
    "plms": Named(adams, {"variable": False}, empty=VELOCITY),
    "lms": Named(adams, {"variable": True}, empty=VELOCITY),
    "ghvb": Named(ghvb, empty=VELOCITY),
    "hb": Named(heavy_ball, empty=VELOCITY),
    "nesterov": Named(nesterov, empty=VELOCITY),
    "deis": Named(deis, empty_grid="log-snr"),
    "dpmpp-2m": Named(dpmpp, {"order": 2}),
    "dpmpp-3m": Named(dpmpp, {"order": 3}),
    "sde-dpmpp-2m": Named(dpmpp, {"order": 2, "eta": 1.0}),
    "unipc": Named(unipc),
    "dpm-solver-v3": Named(dpm_solver_v3, grid="log-snr", empty_grid="log-snr"),
    "reverse-diffusion": Named(reverse_diffusion, empty_grid="log-snr"),
    "euler-maruyama": Named(euler_maruyama, empty_grid="log-snr"),
    "predictor-corrector": Named(corrected),
}
"""What `make` makes a plan of, by name."""


def make(name: str, path, steps: int | None = None, grid: Grid | str | None = None, **options) -> Plan:
    """A plan of `steps` steps by the solver's name.

    `grid` is a name in `GRIDS`, a `Grid` (then leave `steps` out), or None for one that suits solver and path.

    Example:
        >>> solver.make("dpmpp-3m", path, 12).nfe
        12

    Raises:
        InputError: an unknown solver, grid or option; both a `Grid` and `steps`; what the solver itself refuses.
    """
    named = choose(SOLVERS, name, "solver")
    known = [option for option in inspect.signature(named.build).parameters if option not in ("path", "grid")]
    for option in options:
        if option not in known:
            raise InputError(unknown(f"option of {name}", option, known))
    empty = _starts_empty(path) or not path.has_source
    if isinstance(grid, Grid):
        if steps is not None and steps != grid.steps:
            raise InputError(f"steps={steps} was given with a grid of {grid.steps} steps; give one of them")
    else:
        if steps is None:
            raise InputError("steps is missing: how many steps from source to data")
        check_count("steps", steps)
        grid = _grid(grid or (named.empty_grid if empty else named.grid), path, steps)
    return named(path, grid, **{**(named.empty if empty else {}), **options})


def _grid(name: str, path, steps: int) -> Grid:
    build = choose(GRIDS, name, "grid")
    if name in ("uniform-time", "polynomial"):
        return build(path, steps)
    from kinema.generate.path.path import in_float64

    low, high = in_float64(path.log_snr, [max(path.t_min, 0.0), min(path.t_max, 1.0)])[0]
    return build(path, steps, low=max(low, -LIMIT), high=min(high, LIMIT))


def _starts_empty(path) -> bool:
    from kinema.generate.path.path import in_float64

    return bool(in_float64(path.coefficients, 0.0)[0] == 0)
