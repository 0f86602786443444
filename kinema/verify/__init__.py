"""Does a motion obey its law, and does a model know it."""

from kinema.verify.generalization import (
    Conflict,
    Regime,
    VelocityError,
    conflict,
    draw,
    flip,
    gap,
    hole,
    regimes,
    velocity_error,
)
from kinema.verify.laws import LawErrors, laws, replay_error

__all__ = [
    "Conflict",
    "LawErrors",
    "Regime",
    "VelocityError",
    "conflict",
    "draw",
    "flip",
    "gap",
    "hole",
    "laws",
    "regimes",
    "replay_error",
    "velocity_error",
]
