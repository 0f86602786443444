"""Schrödinger bridges: the most likely motion from one law to another under a given noise."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "light": ["LightBridge"],
        "loss": ["light_bridge_loss"],
        "fitting": ["BridgeFit", "fit_light_bridge"],
        "quality": ["conditional_bures_uvp", "plan_gap"],
        "estimator": ["LightBridgeEstimator"],
        "optimal_interpolant": ["InterpolantFit", "OptimalInterpolant", "fit_optimal_interpolant"],
    },
)
