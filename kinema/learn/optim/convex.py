"""The family of convex functions K that Lion-K moves by, with gradients, conjugates and projections.

Here are those that act on single entries; norms of leaves, rows and matrices are in `convex_norms`.
"""

import math

import jax
import jax.numpy as jnp

from kinema.errors import InputError
from kinema.learn.optim.convex_base import Convex, Leaf, wide
from kinema.learn.optim.convex_norms import L2, GroupL2, Nuclear


class _Box(Convex):
    """A K whose conjugate lives on the box max |x| <= 1."""

    def project(self, x: Leaf) -> Leaf:
        return jnp.clip(x, -1, 1)


class L1(_Box):
    """K = |m|_1, ∇K = sign m (0 at 0), K* = 0 on the box: Lion, a bound 1/λ on every weight.

    >>> L1().grad(jnp.array([3.0, 0.0, -0.1])).tolist()
    [1.0, 0.0, -1.0]
    """

    def value(self, m):
        return jnp.sum(jnp.abs(wide(m)))

    def grad(self, m):
        return jnp.sign(m)

    def conjugate(self, x):
        return jnp.zeros((), wide(x).dtype)


class Huber(_Box):
    """K = Σ m²/2e up to |m| = e and |m| - e/2 beyond, ∇K = clip(m/e), K* = e|x|²/2 on the box: Lion without chatter.

    Raises:
        InputError: e not positive.
    """

    e: float = 1e-3  # in units of the gradient

    def __check_init__(self):
        _positive(self, e=self.e)

    def value(self, m):
        size = jnp.abs(wide(m))
        return jnp.sum(jnp.where(size <= self.e, size**2 / (2 * self.e), size - self.e / 2))

    def grad(self, m):
        return jnp.clip(m / self.e, -1, 1)

    def conjugate(self, x):
        return self.e / 2 * jnp.sum(wide(self.project(x)) ** 2)


class PseudoHuber(_Box):
    """K = Σ sqrt(m² + e²), ∇K = m / sqrt(m² + e²), K* = -e Σ sqrt(1 - x²) on the box: smooth Lion.

    Raises:
        InputError: e not positive.
    """

    e: float = 1e-3  # in units of the gradient

    def __check_init__(self):
        _positive(self, e=self.e)

    def value(self, m):
        return jnp.sum(jnp.hypot(wide(m), self.e))

    def grad(self, m):
        return m / jnp.hypot(m, jnp.asarray(self.e, m.dtype))

    def conjugate(self, x):
        return -self.e * jnp.sum(jnp.sqrt(jnp.maximum(1 - wide(self.project(x)) ** 2, 0)))


class ReluL1(_Box):
    """K = Σ max(|m| - e, 0), ∇K = sign m where |m| > e, K* = e|x|_1 on the box: bounded and sparse weights.

    Raises:
        InputError: e not positive.
    """

    e: float = 1e-3  # in units of the gradient

    def __check_init__(self):
        _positive(self, e=self.e)

    def value(self, m):
        return jnp.sum(jnp.maximum(jnp.abs(wide(m)) - self.e, 0))

    def grad(self, m):
        return jnp.where(jnp.abs(m) > self.e, jnp.sign(m), 0)

    def conjugate(self, x):
        return self.e * jnp.sum(jnp.abs(wide(self.project(x))))


class TopK(Convex):
    """K = sum of the k largest |m|, ∇K = their signs, K* = 0 where max |x| <= 1 and |x|_1 <= k: few weights a step.

    Raises:
        InputError: k below 1.
    """

    k: int = 1

    def __check_init__(self):
        if self.k < 1:
            raise InputError(f"TopK needs k >= 1, got {self.k}")

    def value(self, m):
        return jnp.sum(jax.lax.top_k(jnp.abs(wide(m)).ravel(), self.k)[0])

    def grad(self, m):
        flat = m.ravel()
        _, chosen = jax.lax.top_k(jnp.abs(flat), self.k)
        return jnp.zeros_like(flat).at[chosen].set(jnp.sign(flat[chosen])).reshape(m.shape)

    def conjugate(self, x):
        return jnp.zeros((), wide(x).dtype)

    def project(self, x):
        """clip(|x| - t, 0, 1) with the least t >= 0 at which the sum is k or less; the sum is linear between knots."""
        size = jnp.abs(wide(x)).ravel()
        knots = jnp.concatenate([size - 1, size])
        order = jnp.argsort(knots)
        knots = knots[order]
        slope = jnp.cumsum(jnp.where(order < size.size, -1.0, 1.0))[:-1]
        total = size.size + jnp.concatenate([jnp.zeros(1, size.dtype), jnp.cumsum(slope * jnp.diff(knots))])
        t = jnp.maximum(jnp.interp(jnp.asarray(self.k, size.dtype), total[::-1], knots[::-1]), 0)
        return (jnp.sign(x) * jnp.clip(size - t, 0, 1).reshape(x.shape)).astype(x.dtype)

    def unfit(self, shape):
        size = math.prod(shape)
        return f"TopK(k={self.k}) needs {self.k} numbers or more, the leaf has {size}" if self.k > size else ""


class L2Squared(Convex):
    """K = |m|²/2, ∇K = m, K* = |x|²/2 everywhere: momentum, and decay as a penalty λ|x|²/2."""

    def value(self, m):
        return jnp.sum(wide(m) ** 2) / 2

    def grad(self, m):
        return m

    def conjugate(self, x):
        return jnp.sum(wide(x) ** 2) / 2

    def project(self, x):
        return x


class Lp(Convex):
    """K = |m|_q^q / q, ∇K = sign m |m|^(q - 1), K* = |x|_p^p / p everywhere, 1/p + 1/q = 1.

    Raises:
        InputError: q not above 1 (1 is `L1`).
    """

    q: float = 1.5

    def __check_init__(self):
        if not (self.q > 1 and math.isfinite(self.q)):
            raise InputError(f"Lp needs a finite q > 1, got {self.q}; L1() is q = 1")

    def value(self, m):
        return jnp.sum(jnp.abs(wide(m)) ** self.q) / self.q

    def grad(self, m):
        return jnp.sign(m) * jnp.abs(m) ** (self.q - 1)

    def conjugate(self, x):
        p = self.q / (self.q - 1)
        return jnp.sum(jnp.abs(wide(x)) ** p) / p

    def project(self, x):
        return x


ALL_CONVEX: tuple[type[Convex], ...] = (
    *(L1, Huber, PseudoHuber, ReluL1, TopK),
    *(L2Squared, Lp, L2, GroupL2, Nuclear),
)


def _positive(k: Convex, **numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise InputError(f"{type(k).__name__} needs {name} > 0, got {value}")
