"""Bridges to other libraries, each imported when first used. What a bridge needs is in an extra of its name."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "diffusers": ["KinemaScheduler"],
        "flower": ["FederatedStrategy", "InProcessGrid", "client_app"],
        "torch": ["TorchNetwork", "from_torch", "table_index"],
    },
)
