"""How parameters move: one training loop, and what it is made of."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "fitting": ["Fit", "fit"],
        "checkpoint": ["load_model"],
        "batches": ["batch_rows"],
        "trainable": ["Trainable"],
        "gradient": ["BackPropagation", "GradientSource"],
        "step": ["LearnState", "advance", "begin"],
        "probe": ["Probe"],
        "history": ["History", "ProbeRecord"],
        "optimizer": ["adam"],
        "latent_sde": ["LatentLoss"],
        "sde_gan": ["Adversaries", "WassersteinSource", "clipped"],
        "sparse": ["Formula", "Front", "Library", "discover"],
        "trajectories": ["SlopeLoss", "TrajectoryLoss", "slopes", "windows"],
    },
)
