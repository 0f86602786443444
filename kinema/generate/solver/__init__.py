"""Solvers as plans: coefficients computed before sampling starts, run by `kinema.generate.sample`.

Builders are `build(path, grid, **options) -> Plan`; `make(name, path, steps)` finds one by name. See `plan` for what a
plan is and `held` for what the solvers have in common. Importing this package does not import JAX.
"""

from kinema.generate.solver.adams import adams
from kinema.generate.solver.dpm_solver_v3 import dpm_solver_v3
from kinema.generate.solver.exponential import deis, dpmpp, euler
from kinema.generate.solver.grids import GRIDS, Grid
from kinema.generate.solver.langevin import predictor_corrector
from kinema.generate.solver.model_statistics import ModelStatistics
from kinema.generate.solver.momentum import ghvb, heavy_ball, nesterov, number_for
from kinema.generate.solver.plan import Plan
from kinema.generate.solver.registry import SOLVERS, make
from kinema.generate.solver.runge_kutta import churn, heun, restart
from kinema.generate.solver.stability import (
    amplification,
    companion,
    growth,
    locus,
    real_interval,
    spectral_radius,
    stability_radius,
)
from kinema.generate.solver.stochastic import ancestral, euler_maruyama, reverse_diffusion
from kinema.generate.solver.unipc import unipc

__all__ = [
    "GRIDS",
    "SOLVERS",
    "Grid",
    "ModelStatistics",
    "Plan",
    "adams",
    "amplification",
    "ancestral",
    "churn",
    "companion",
    "deis",
    "dpm_solver_v3",
    "dpmpp",
    "euler",
    "euler_maruyama",
    "ghvb",
    "growth",
    "heavy_ball",
    "heun",
    "locus",
    "make",
    "nesterov",
    "number_for",
    "predictor_corrector",
    "real_interval",
    "restart",
    "reverse_diffusion",
    "spectral_radius",
    "stability_radius",
    "unipc",
]
