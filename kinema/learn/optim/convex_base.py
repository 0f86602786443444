"""What a convex function K of one leaf has to say, for sign-like momentum.

    K*(x) = max over m of <m, x> - K(m)        K(m) + K*(x) >= <m, x>, with equality at x = ∇K(m)

x moves along ∇K(m) and decay holds λx in the domain of K*. Every K here is even, so that the sign in which a momentum
is kept does not matter.   [Chen, Liu, Liang & Liu 2024]
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kinema.errors import InputError

Leaf = Float[Array, "*shape"]
Scalar = Float[Array, ""]


class Convex(eqx.Module):
    """A convex even function K of one array: `value` and `grad` move, the rest is for watching.

    A K of your own needs the first two; without `conjugate` and `project` it moves but cannot be watched.
    """

    least_ndim: ClassVar[int] = 0  # leaves of fewer axes have no such K

    @abc.abstractmethod
    def value(self, m: Leaf) -> Scalar:
        """K(m), in float32 or wider."""

    @abc.abstractmethod
    def grad(self, m: Leaf) -> Leaf:
        """A subgradient of K at m; 0 at m = 0."""

    def conjugate(self, x: Leaf) -> Scalar:
        """K* at the point of its domain nearest to x: finite everywhere, K*(x) itself inside.

        Raises:
            InputError: this K does not say what its conjugate is.
        """
        raise InputError(f"{type(self).__name__} has no conjugate: define conjugate and project to watch it")

    def project(self, x: Leaf) -> Leaf:
        """The point of the domain of K* nearest to x.

        Raises:
            InputError: this K does not say what its conjugate is.
        """
        raise InputError(f"{type(self).__name__} has no projection: define conjugate and project to watch it")

    def distance(self, x: Leaf) -> Scalar:
        """Euclidean distance of x to the domain of K*."""
        return norm(wide(x) - wide(self.project(x)))

    def in_domain(self, x: Leaf, tolerance: float = 1e-6) -> Bool[Array, ""]:
        """Whether x is in the domain of K*, to a distance of `tolerance`."""
        return self.distance(x) <= tolerance

    def unfit(self, shape: tuple[int, ...]) -> str:
        """Why a leaf of this shape cannot have this K; empty if it can."""
        needs, has = self.least_ndim, len(shape)
        return f"{type(self).__name__} needs {needs} axes or more, the leaf has {has}" if has < needs else ""


def wide(x: Leaf) -> Leaf:
    """In float32 or wider, in which sums are made."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def norm(x, axis: int | None = None):
    """Euclidean length, of the whole or along one axis."""
    return jnp.sqrt(jnp.sum(x**2, axis))
