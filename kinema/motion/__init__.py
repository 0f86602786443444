"""The trunk: laws, integration, trajectories, their store, invariants, tree algebra. Imports nothing else of Kinema."""

from kinema.motion.brownian import BrownianPath
from kinema.motion.integrate import integrate
from kinema.motion.invariants import Invariant, along, change
from kinema.motion.law import FunctionLaw, Law, SecondOrder, Separable
from kinema.motion.methods import ADJOINTS, METHODS
from kinema.motion.readers import Dataset, read
from kinema.motion.reversible import Reversible, ReversibleAdjoint, dissipation
from kinema.motion.store import append, verify
from kinema.motion.symplectic import Leapfrog, Yoshida4
from kinema.motion.trajectory import Trajectory
from kinema.motion.trees import leaf_names
from kinema.motion.weights import load_weights, save_weights

__all__ = [
    "ADJOINTS",
    "METHODS",
    "BrownianPath",
    "Dataset",
    "FunctionLaw",
    "Invariant",
    "Law",
    "Leapfrog",
    "Reversible",
    "ReversibleAdjoint",
    "SecondOrder",
    "Separable",
    "Trajectory",
    "Yoshida4",
    "along",
    "append",
    "change",
    "dissipation",
    "integrate",
    "leaf_names",
    "load_weights",
    "read",
    "save_weights",
    "verify",
]
