"""Kinema: models of motion. simulate -> learn -> generate -> steer -> verify."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_STAGES = ("errors", "generate", "interop", "learn", "models", "motion", "report", "simulate", "steer", "studies", "verify")

if TYPE_CHECKING:
    from kinema import errors, generate, interop, learn, models, motion, report, simulate, steer, studies, verify

__all__ = ["__version__", *_STAGES]


def __getattr__(name: str):
    if name in _STAGES:
        return importlib.import_module(f"kinema.{name}")
    raise AttributeError(f"module 'kinema' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
