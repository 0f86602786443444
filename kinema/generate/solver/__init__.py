"""Solvers as plans. See `kinema.generate.solver.plan`."""

from kinema.generate.solver.adams import adams
from kinema.generate.solver.exponential import dpmpp, euler
from kinema.generate.solver.plan import Plan

__all__ = ["Plan", "adams", "dpmpp", "euler"]
