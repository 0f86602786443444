"""Learning with factors: matrix sensing, descent on X Xᵀ and F Gᵀ, its acceleration, and rates of convergence."""

from kinema.learn.factorized.descent import (
    Descent,
    RateFit,
    balance,
    descend,
    fit_rate,
    product,
    scaled_gd,
    singular_values,
)
from kinema.learn.factorized.problem import (
    EntrySensing,
    FactoredLoss,
    GaussianSensing,
    IdentitySensing,
    Sensing,
    SymmetricLoss,
    gaussian_sensing,
    low_rank,
    start_asymmetric,
    start_symmetric,
)
from kinema.learn.factorized.rebalance import Pair, rebalance, rebalance_once

__all__ = [
    "Descent",
    "EntrySensing",
    "FactoredLoss",
    "GaussianSensing",
    "IdentitySensing",
    "Pair",
    "RateFit",
    "Sensing",
    "SymmetricLoss",
    "balance",
    "descend",
    "fit_rate",
    "gaussian_sensing",
    "low_rank",
    "product",
    "rebalance",
    "rebalance_once",
    "scaled_gd",
    "singular_values",
    "start_asymmetric",
    "start_symmetric",
]
