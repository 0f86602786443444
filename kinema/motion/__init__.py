"""The trunk: laws, integration, trajectories, their store, invariants, tree algebra. Imports nothing else of Kinema."""

from kinema.motion.integrate import integrate
from kinema.motion.invariants import Invariant, along, change
from kinema.motion.law import FunctionLaw, Law, SecondOrder, Separable
from kinema.motion.methods import ADJOINTS, METHODS
from kinema.motion.stepping import EvenSteps
from kinema.motion.symplectic import Leapfrog, Yoshida4
from kinema.motion.trajectory import Trajectory

__all__ = [
    "ADJOINTS",
    "METHODS",
    "EvenSteps",
    "FunctionLaw",
    "Invariant",
    "Law",
    "Leapfrog",
    "SecondOrder",
    "Separable",
    "Trajectory",
    "Yoshida4",
    "along",
    "change",
    "integrate",
]
