"""Equilibrium propagation: gradients of networks that settle, read from how the steady state moves with its output."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "dynamics": ["Downhill", "Flow", "Relaxation", "Settled", "settle", "settled_loss", "warn_unsettled"],
        "networks": ["Convolution", "Dense", "Layered", "conv_network", "dense_network"],
        "holomorphic": [
            "check_holomorphic",
            "cross_entropy",
            "dsilu",
            "softmax_pool",
            "squared_error",
            "steep_sigmoid",
        ],
        "estimate": [
            "Cauchy",
            "Derivative",
            "Estimator",
            "Nudging",
            "OneSided",
            "Online",
            "RecurrentBackProp",
            "Response",
            "Symmetric",
        ],
        "homeostasis": ["Homeostasis", "homeostatic_loss", "jacobian_symmetry", "symmetry_probe"],
        "source": ["EquilibriumPropagation", "ep_gradient", "implicit_gradient"],
    },
)
