"""How probability moves: paths, generators, solvers, the sampling loop."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "path": ["EDM", "PATHS", "VE", "VP", "Linear", "Path", "SubVP"],
        "generator": ["Generator", "SamplingLaw"],
        "fields": ["Prediction"],
        "sampling": ["Samples", "bind", "sample"],
        "solver.grids": ["Grid"],
    },
)
