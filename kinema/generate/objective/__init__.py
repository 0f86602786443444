"""What generators are trained to minimise."""

from kinema.generate.objective.denoising import Denoising, edm, flow_matching
from kinema.generate.objective.fokker_planck import FokkerPlanck, LogUniformTime
from kinema.generate.objective.interpolating import COUPLINGS, Interpolating
from kinema.generate.objective.weighting import (
    QUANTILES,
    TIMES,
    WEIGHTINGS,
    LogitNormal,
    LogNormalNoise,
    Uniform,
    capped,
)

__all__ = [
    "COUPLINGS",
    "QUANTILES",
    "TIMES",
    "WEIGHTINGS",
    "Denoising",
    "FokkerPlanck",
    "Interpolating",
    "LogNormalNoise",
    "LogUniformTime",
    "LogitNormal",
    "Uniform",
    "capped",
    "edm",
    "flow_matching",
]
