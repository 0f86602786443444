"""Statistics of a model along its path: what DPM-Solver-v3 fits its steps to. NumPy only.

l, s and b are functions of lam = log(a / s), tabulated and interpolated between. They belong to the network and the
data: of the path they depend on lam alone, so they hold on every path that the network is used on.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinema.errors import InputError, StoreCorrupt
from kinema.generate.solver.grids import check_increasing

FILE = "statistics.safetensors"
NAMES = ("lam", "linear", "scaling", "bias")


@dataclass(frozen=True)
class ModelStatistics:
    """l (`linear`), s (`scaling`) and b (`bias`) at rising log-SNRs `lam (n,)`.

    Each is `(n,)`, or has the shape of one sample, or of its last axis, on top. `kinema.generate.estimate_statistics`
    makes them.

    Raises:
        InputError: shapes that differ, fewer than 2 rows, values that are not finite, `lam` that does not rise.
    """

    lam: np.ndarray
    linear: np.ndarray
    scaling: np.ndarray
    bias: np.ndarray

    def __post_init__(self):
        for name in NAMES:
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"{name} must be finite")
        if self.lam.ndim != 1 or len(self.lam) < 2:
            raise InputError(f"lam must be a vector of at least 2, got shape {self.lam.shape}")
        check_increasing("lam", self.lam)
        if not self.linear.shape == self.scaling.shape == self.bias.shape or self.linear.shape[:1] != self.lam.shape:
            shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in NAMES)
            raise InputError(f"linear, scaling and bias must have one shape and a row for each of lam, got {shapes}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row: () if all coordinates share their statistics."""
        return self.linear.shape[1:]

    def at(self, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(l, s, b) at any log-SNRs inside, by monotone cubics.

        Raises:
            InputError: a log-SNR outside the table.
        """
        from scipy.interpolate import PchipInterpolator

        slack = 1e-6 * (self.lam[-1] - self.lam[0])
        if lam.min() < self.lam[0] - slack or lam.max() > self.lam[-1] + slack:
            raise InputError(
                f"the grid goes from log-SNR {lam.min():.6g} to {lam.max():.6g}, the statistics from"
                f" {self.lam[0]:.6g} to {self.lam[-1]:.6g}; estimate them with low and high around the grid"
            )
        inside = np.clip(lam, self.lam[0], self.lam[-1])
        values = PchipInterpolator(self.lam, np.stack([self.linear, self.scaling, self.bias], 1))(inside)
        return values[:, 0], values[:, 1], values[:, 2]

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file; in a folder, such as that of a run, beside its weights."""
        from kinema.motion.weights import save_weights

        save_weights(_file(path), {name: getattr(self, name) for name in NAMES}, {"kind": "statistics"})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ModelStatistics":
        """Read what `save` wrote, from the file or its folder.

        Raises:
            InputError: no such file.
            StoreCorrupt: a damaged file, or one that holds something else.
        """
        from kinema.motion.weights import load_arrays

        arrays = load_arrays(_file(path))
        if set(arrays) != set(NAMES):
            raise StoreCorrupt(f"{_file(path)} does not hold statistics, but {', '.join(sorted(arrays)) or 'nothing'}")
        return cls(**arrays)


def _file(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path / FILE if path.is_dir() else path
