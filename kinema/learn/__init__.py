"""How parameters move: one training loop, and what it is made of."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "fitting": ["Fit", "fit"],
        "checkpoint": ["load_model"],
        "batches": ["batch_rows"],
        "trainable": ["Trainable"],
        "gradient": ["Accumulated", "BackPropagation", "GradientSource", "LowPrecision"],
        "step": ["LearnState", "advance", "begin"],
        "transform": ["Correspondence", "Piece", "Rebalance", "TreeTransform", "transplant"],
        "probe": ["Probe", "Snapshot"],
        "step_probe": ["effective_step_probe"],
        "stopping": ["Patience"],
        "history": ["History", "ProbeRecord"],
        "optimizer": ["adam", "by_path", "leaf_mask"],
        "optim": [],
        "factorized": [],
        "population": [
            "Independent",
            "Population",
            "RoundRule",
            "advance_round",
            "average",
            "choose_members",
            "count_members",
            "member_keys",
            "replicate",
            "scan_rounds",
            "stack",
            "unstack",
        ],
        "rounds": ["Rounds", "run_rounds"],
        "federated": [],
        "equilibrium": [],
        "latent_sde": ["LatentLoss"],
        "sde_gan": ["Adversaries", "WassersteinSource", "clipped"],
        "sparse": ["Formula", "Front", "Library", "discover"],
        "trajectories": ["SlopeLoss", "TrajectoryLoss", "slopes", "windows"],
    },
)
