"""Networks: single-sample Equinox modules `net(x, signal, cond=None) -> array like x`, made by name."""

from kinema.models.conservative import Conservative, PotentialMLP
from kinema.models.dit import DiT
from kinema.models.embedding import null_condition
from kinema.models.equilibrium import Equilibrium, EquilibriumLayer
from kinema.models.image_unet import ImageUNet
from kinema.models.mlp import MLP
from kinema.models.motion_tokens import MotionTokens
from kinema.models.neural_cde import ControlPath, NeuralCDE, log_signatures, make_path
from kinema.models.neural_ode import NeuralODE, ScaledField, VectorField, lipswish
from kinema.models.neural_sde import LatentSDE, NeuralSDE
from kinema.models.registry import make, model, names, spec
from kinema.models.suggestion import suggest
from kinema.models.temporal_unet import TemporalUNet

ALL_MODELS = ("dit", "image_unet", "mlp", "motion_tokens", "temporal_unet")
"""Names of the networks that `make` builds."""

__all__ = [
    "ALL_MODELS",
    "MLP",
    "Conservative",
    "ControlPath",
    "DiT",
    "Equilibrium",
    "EquilibriumLayer",
    "ImageUNet",
    "LatentSDE",
    "MotionTokens",
    "NeuralCDE",
    "NeuralODE",
    "NeuralSDE",
    "PotentialMLP",
    "ScaledField",
    "TemporalUNet",
    "VectorField",
    "lipswish",
    "log_signatures",
    "make",
    "make_path",
    "model",
    "names",
    "null_condition",
    "spec",
    "suggest",
]
