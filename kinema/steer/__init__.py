"""Control at inference time. One protocol, see `Controller`."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "best_of": ["BestOf"],
        "conditioning": ["condition_on_mask", "condition_on_projection", "guide_by_classifier"],
        "controller": ["Budget", "Controller", "Ledger", "Move", "Particles", "Scene"],
        "law_projection": ["LawProjection"],
        "motion_fit": ["fit_motion"],
        "particle_filter": ["ParticleFilter"],
        "path_weighted": ["PathWeighted"],
        "resampling": ["ess", "logmeanexp", "multinomial", "residual", "stratified", "systematic"],
        "restoration": ["Observed", "Restoration", "restore"],
        "rounds": ["SteerResult", "steer"],
    },
)
