"""Kinema: models of motion. simulate -> learn -> generate -> steer -> verify."""

from kinema._lazy import attach

__version__ = "0.1.0"

_STAGES = "errors generate interop learn models motion report simulate steer studies verify"

__getattr__, __dir__, __all__ = attach(__name__, {stage: [] for stage in _STAGES.split()})
