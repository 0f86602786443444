"""How data and source are joined. See `Path`."""

from kinema.generate.path.gaussian import EDM, PATHS, VE, VP, Linear, SubVP
from kinema.generate.path.path import Noised, Path

__all__ = ["EDM", "PATHS", "VE", "VP", "Linear", "Noised", "Path", "SubVP"]
