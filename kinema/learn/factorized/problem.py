"""Matrix sensing: recover a matrix of low rank from linear measurements y_i = <A_i, M>, by descent on its factors.

    symmetric      M = X Xᵀ      loss = Σ (<A_i, X Xᵀ> - y_i)² / 4      X (n, k)
    asymmetric     M = F Gᵀ      loss = Σ (<A_i, F Gᵀ> - y_i)² / 2      F (n1, k), G (n2, k)

[Xiong, Ding & Du 2024]
"""

import abc
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from kinema.errors import InputError

Matrix = Float[Array, "n1 n2"]
Factors = tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]


class Sensing(eqx.Module):
    """A linear map of (n1, n2) matrices to measurements, with its adjoint; A*A is near the identity."""

    shape: eqx.AbstractVar[tuple[int, int]]

    @abc.abstractmethod
    def forward(self, matrix: Matrix) -> Float[Array, " m"]:
        """<A_i, M> for every i."""

    @abc.abstractmethod
    def adjoint(self, y: Float[Array, " m"]) -> Matrix:
        """Σ y_i A_i."""


class IdentitySensing(Sensing):
    """Every entry, once: the limit of infinitely many measurements, in which rates have closed forms.

    Raises:
        InputError: a size below 1.
    """

    shape: tuple[int, int] = eqx.field(static=True)

    def __check_init__(self):
        _sizes(*self.shape)

    def forward(self, matrix):
        return matrix.ravel()

    def adjoint(self, y):
        return y.reshape(self.shape)


class GaussianSensing(Sensing):
    """Inner products with `rows` (m, n1 n2), flattened matrices; see `gaussian_sensing`."""

    rows: Float[Array, "m size"]
    shape: tuple[int, int] = eqx.field(static=True)

    def __check_init__(self):
        if math.prod(self.shape) != self.rows.shape[1] or not len(self.rows):
            raise InputError(f"rows must have shape (m >= 1, {math.prod(self.shape)}), got {self.rows.shape}")

    def forward(self, matrix):
        return self.rows @ matrix.ravel()

    def adjoint(self, y):
        return (y @ self.rows).reshape(self.shape)

    def compressed(self, y: Float[Array, " m"]) -> tuple["GaussianSensing", Float[Array, " few"]]:
        """The same problem, up to a constant in the loss, with min(m, n1 n2) measurements: rows = Q R, y -> Qᵀy.

        Gradients stay as they are, and steps are quicker where there are more measurements than entries.
        """
        if len(self.rows) <= self.rows.shape[1]:
            return self, y
        q, r = jnp.linalg.qr(self.rows)
        return GaussianSensing(rows=r, shape=self.shape), q.T @ y


def gaussian_sensing(m: int, n1: int, n2: int, *, key: PRNGKeyArray) -> GaussianSensing:
    """m matrices of independent N(0, 1/m) entries: a near isometry on rank k once m is several times (n1 + n2) k.

    >>> gaussian_sensing(50, 4, 3, key=jr.key(0)).forward(jnp.ones((4, 3))).shape
    (50,)

    Raises:
        InputError: m or a size below 1.
    """
    _sizes(n1, n2)
    if m < 1:
        raise InputError(f"m must be at least 1 measurement, got {m}")
    return GaussianSensing(rows=jr.normal(key, (m, n1 * n2)) / m**0.5, shape=(n1, n2))


class EntrySensing(Sensing):
    """The entries where `mask` is true: matrix completion. Scaled so that A*A is the identity on average.

    Raises:
        InputError: a mask without true entries.
    """

    mask: Bool[np.ndarray, "n1 n2"] = eqx.field(converter=np.asarray)

    @property
    def shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        return self.mask.shape

    def __check_init__(self):
        if not self.mask.any():
            raise InputError("mask has no true entry: there is nothing to measure")

    def forward(self, matrix):
        return (self._weights * matrix).ravel()

    def adjoint(self, y):
        return self._weights * y.reshape(self.shape)

    @property
    def _weights(self) -> np.ndarray:
        return self.mask * (self.mask.size / self.mask.sum()) ** 0.5


class SymmetricLoss(eqx.Module):
    """Objective of X (n, k): Σ (<A_i, X Xᵀ> - y_i)² / 4. With a `target` its metrics hold the `error` |X Xᵀ - M|_F.

    >>> still = SymmetricLoss(IdentitySensing((2, 2)), jnp.array([1.0, 0.0, 0.0, 0.0]))
    >>> still(jnp.array([[1.0], [0.0]]))[0].item()
    0.0

    Raises:
        InputError: matrices that are not square.
    """

    sensing: Sensing
    y: Float[Array, " m"]
    target: Matrix | None = None

    def __check_init__(self):
        if self.sensing.shape[0] != self.sensing.shape[1]:
            raise InputError(f"X Xᵀ is square, the sensing is of matrices {self.sensing.shape}; use FactoredLoss")

    def __call__(self, x: Float[Array, "n k"], batch=None, key=None) -> tuple[Array, dict[str, Array]]:
        return _judged(self, x @ x.T, 4)


class FactoredLoss(eqx.Module):
    """Objective of the pair (F, G): Σ (<A_i, F Gᵀ> - y_i)² / 2. With a `target` its metrics hold the `error`."""

    sensing: Sensing
    y: Float[Array, " m"]
    target: Matrix | None = None

    def __call__(self, factors: Factors, batch=None, key=None) -> tuple[Array, dict[str, Array]]:
        f, g = factors
        return _judged(self, f @ g.T, 2)


def start_symmetric(n: int, k: int, scale: Any, *, rank: int = 1, key: PRNGKeyArray) -> Float[Array, "n k"]:
    """X = scale · N(0, 1/n) entries. `rank` of the target, if it is known, checks that k is enough.

    Raises:
        InputError: a size below 1, or k below the rank.
    """
    _columns(k, rank)
    _sizes(n, k)
    return scale * jr.normal(key, (n, k)) / n**0.5


def start_asymmetric(
    n1: int, n2: int, k: int, scale: Any, *, ratio: float = 1 / 3, rank: int = 1, key: PRNGKeyArray
) -> Factors:
    """F = scale · N(0, 1/n1), G = ratio · scale · N(0, 1/n2).

    The imbalance FᵀF - GᵀG, which descent conserves, sets the rate where k > r: a `ratio` of 1 is slower.

    Raises:
        InputError: a size below 1, or k below the rank.
    """
    _columns(k, rank)
    _sizes(n1, n2)
    key_f, key_g = jr.split(key)
    f, g = jr.normal(key_f, (n1, k)) / n1**0.5, jr.normal(key_g, (n2, k)) / n2**0.5
    return scale * f, ratio * scale * g


def low_rank(n1: int, n2: int, values: Sequence[float], *, symmetric: bool = False, key: PRNGKeyArray) -> Matrix:
    """A matrix with these singular values along random directions, the same on both sides where `symmetric`.

    Raises:
        InputError: more values than a side is long, or a symmetric matrix that is not square.
    """
    if len(values) > min(n1, n2) or (symmetric and n1 != n2):
        raise InputError(f"{len(values)} singular values do not make a {'symmetric ' * symmetric}{n1} x {n2} matrix")
    u, v = (jnp.linalg.qr(jr.normal(k, (n, len(values))))[0] for k, n in zip(jr.split(key), (n1, n2)))
    return (u * jnp.asarray(values)) @ (u if symmetric else v).T


def _judged(loss: SymmetricLoss | FactoredLoss, matrix: Matrix, divisor: int):
    residual = loss.sensing.forward(matrix) - loss.y
    metrics = {} if loss.target is None else {"error": jnp.linalg.norm(matrix - loss.target)}
    return jnp.sum(residual**2) / divisor, metrics


def _sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise InputError(f"matrices need sizes of at least 1, got {sizes}")


def _columns(k: int, rank: int) -> None:
    if k < rank:
        raise InputError(f"k must be at least the rank {rank} of the target, got {k}")
