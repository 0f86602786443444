"""How probability moves: paths, generators, solvers, the sampling loop."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "path": [
            "EDM",
            "PATHS",
            "VE",
            "VP",
            "Bridge",
            "Interpolant",
            "Linear",
            "MeanReverting",
            "Mirror",
            "Path",
            "PoissonFlow",
            "SubVP",
            "Trig",
        ],
        "generator": ["Generator", "SamplingLaw"],
        "guidance": ["Guided"],
        "mixtures": ["MixturePosterior"],
        "coupled": ["CoupledPosterior"],
        "fields": ["Prediction"],
        "codec": ["Codec"],
        "objective": ["Denoising", "Interpolating", "edm", "flow_matching"],
        "training": ["train"],
        "run": ["Run", "load_run", "save_run"],
        "solver": ["Grid", "Plan"],
        "sampling": ["Samples", "bind", "sample"],
        "adaptive": ["solve_adaptive"],
        "bridges": ["LightBridge", "LightBridgeEstimator", "fit_light_bridge"],
        "discrete": [],
        "latent": ["LatentModel"],
        "instance_noise": ["InstanceNoise", "recommended_noise", "select_noise"],
        "objective.latent_likelihood": ["LatentLikelihood", "fit_latent_likelihood"],
        "likelihood": ["bits_per_dim", "dequantise", "log_prob"],
    },
)
