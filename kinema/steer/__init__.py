"""Control at inference time. One protocol, see `Controller`."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "best_of": ["BestOf"],
        "controller": ["Budget", "Controller", "Ledger", "Particles", "Scene"],
        "fit_motion": ["fit_motion"],
        "law_projection": ["LawProjection"],
        "particle_filter": ["ParticleFilter"],
        "resampling": ["ess", "logmeanexp", "multinomial", "residual", "stratified", "systematic"],
        "restoration": ["Observed", "Restoration", "restore"],
        "rounds": ["SteerResult", "steer"],
    },
)
