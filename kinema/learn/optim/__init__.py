"""Optimizers that optax lacks or has otherwise: plain gradient transformations for any PyTree."""

from kinema.learn.optim.adamp import adamp, sgdp
from kinema.learn.optim.adan import AdanState, adan, proximal_decay, scale_by_adan, scale_by_nme
from kinema.learn.optim.convex import (
    ALL_CONVEX,
    L1,
    L2,
    Convex,
    GroupL2,
    Huber,
    L2Squared,
    Lp,
    Nuclear,
    PseudoHuber,
    ReluL1,
    TopK,
)
from kinema.learn.optim.family import ALL_OPTIMIZERS
from kinema.learn.optim.lion_k import LionK, LionSettings, lion_k, scale_by_lion_k
from kinema.learn.optim.masks import leaf_flags
from kinema.learn.optim.radial import EffectiveStep, effective_step, radial_projection, scale_invariance
from kinema.learn.optim.restart import Restart, RestartEvery, RestartWhenMoved

__all__ = [
    "ALL_CONVEX",
    "ALL_OPTIMIZERS",
    "L1",
    "L2",
    "AdanState",
    "Convex",
    "EffectiveStep",
    "GroupL2",
    "Huber",
    "L2Squared",
    "LionK",
    "LionSettings",
    "Lp",
    "Nuclear",
    "PseudoHuber",
    "ReluL1",
    "Restart",
    "RestartEvery",
    "RestartWhenMoved",
    "TopK",
    "adamp",
    "adan",
    "effective_step",
    "leaf_flags",
    "lion_k",
    "proximal_decay",
    "radial_projection",
    "scale_by_adan",
    "scale_by_lion_k",
    "scale_by_nme",
    "scale_invariance",
    "sgdp",
]
