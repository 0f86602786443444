"""Ising model on a torus, an unnormalised law whose evidence is known.

    log f(x) = coupling  sum over neighbours s_i s_j  +  field  sum_i s_i,    s = 2 x - 1

Each site is joined to the one on its right and the one below, round the torus, so there are two bonds a site; on an
axis of length 2 both of a site's bonds along it join the same two sites, and both count.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kinema.errors import InputError


class Ising(eqx.Module):
    """log f of one configuration x `(rows * columns,)` of 0 (down) and 1 (up), row by row.

    The defaults are those of Liu et al. 2024, who count every bond twice, with 0.1.

    >>> round(Ising((3, 3))(jnp.ones(9, int)).item(), 3)  # 18 bonds and 9 sites, 0.2 each
    5.4

    Raises:
        InputError: an axis shorter than 2.
    """

    shape: tuple[int, int] = eqx.field(static=True)
    coupling: float = 0.2  # of a bond
    field: float = 0.2

    def __check_init__(self):
        if min(self.shape) < 2:
            raise InputError(f"shape must be at least (2, 2), got {self.shape}")

    @property
    def length(self) -> int:
        return self.shape[0] * self.shape[1]

    def __call__(self, x: Int[Array, " length"]) -> Float[Array, ""]:
        s = (2 * x - 1).reshape(self.shape).astype(jnp.result_type(float))
        bonds = s * (jnp.roll(s, 1, 0) + jnp.roll(s, 1, 1))
        return self.coupling * bonds.sum() + self.field * s.sum()

    def log_evidence(self) -> float:
        """log of the sum of f over all configurations, by the transfer matrix from row to row, in double precision.

        Raises:
            InputError: both axes longer than 11: the matrix would not fit.
        """
        rows, columns = max(self.shape), min(self.shape)
        if columns > 11:
            raise InputError(f"log_evidence needs an axis of at most 11 sites, got shape {self.shape}")
        s = 2.0 * ((np.arange(2**columns)[:, None] >> np.arange(columns)) & 1) - 1
        own = self.coupling * (s * np.roll(s, 1, 1)).sum(1) + self.field * s.sum(1)
        log_step = self.coupling * s @ s.T + (own[:, None] + own) / 2
        top = log_step.max()
        eigenvalues = np.linalg.eigvalsh(np.exp(log_step - top))
        signs = np.sign(eigenvalues) ** rows
        largest = np.abs(eigenvalues).max()
        powers = signs * np.abs(eigenvalues / largest) ** rows
        return rows * (top + math.log(largest)) + math.log(powers.sum())
