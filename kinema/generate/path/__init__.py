"""How data and source are joined. See `Path`."""

from kinema.generate.path.gaussian import EDM, GAUSSIAN, VE, VP, Linear, SubVP, Trig
from kinema.generate.path.interpolant import Bridge, Interpolant, Mirror
from kinema.generate.path.mean_reverting import MeanReverting
from kinema.generate.path.path import Noised, Path
from kinema.generate.path.poisson import PoissonFlow

PATHS = GAUSSIAN | {
    "pfgmpp": PoissonFlow,
    "mean-reverting": MeanReverting,
    "bridge": Bridge,
    "interpolant": Interpolant,
    "mirror": Mirror,
}
"""Every path by name."""

__all__ = [
    "EDM",
    "GAUSSIAN",
    "PATHS",
    "VE",
    "VP",
    "Bridge",
    "Interpolant",
    "Linear",
    "MeanReverting",
    "Mirror",
    "Noised",
    "Path",
    "PoissonFlow",
    "SubVP",
    "Trig",
]
