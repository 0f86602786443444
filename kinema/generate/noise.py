"""Noise laws: what z in x_t = a x1 + b x0 + s z is drawn from.

Reference: Xu et al. 2023 (PFGM++), whose perturbation kernel is the Student-t law.
"""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError


class NoiseLaw(eqx.Module):
    """The law of z, one whole sample at a time. `gaussian` says whether score = -E[z | x] / s holds."""

    gaussian: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def sample(self, key, like: PyTree) -> PyTree:
        """One draw with the structure, shapes and dtypes of `like` (arrays or `jax.ShapeDtypeStruct`)."""

    @abc.abstractmethod
    def log_prob(self, z: PyTree) -> Float[Array, ""]:
        """Log density of one whole sample, nats."""

    @abc.abstractmethod
    def score(self, z: PyTree) -> PyTree:
        """Gradient of `log_prob`."""


class Normal(NoiseLaw):
    """Standard normal in every coordinate."""

    gaussian: ClassVar[bool] = True

    def sample(self, key, like: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(like)
        keys = jr.split(key, len(leaves))
        return structure.unflatten(jr.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves))

    def log_prob(self, z: PyTree) -> Float[Array, ""]:
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(z)])
        return -0.5 * jnp.sum(flat**2) - 0.5 * flat.size * jnp.log(2 * jnp.pi)

    def score(self, z: PyTree) -> PyTree:
        return jax.tree.map(jnp.negative, z)


class StudentT(NoiseLaw):
    """Multivariate Student-t with `df` degrees of freedom and unit scale: a normal sample over sqrt(chi^2_df / df).

    The chi-square is one number for a whole sample, so coordinates are uncorrelated but not independent. The variance
    of each is df / (df - 2), infinite up to df = 2.

    Raises:
        InputError: `df` not positive and finite.
    """

    df: float = eqx.field(static=True)
    gaussian: ClassVar[bool] = False

    def __check_init__(self):
        if not 0 < self.df < math.inf:
            raise InputError(f"df must be positive and finite, got {self.df}; infinitely many degrees are Normal()")

    def sample(self, key, like: PyTree) -> PyTree:
        key_normal, key_radius = jr.split(key)
        dtype = jnp.result_type(*jax.tree.leaves(like))
        log_square = math.log(2 / self.df) + jr.loggamma(key_radius, self.df / 2, dtype=dtype)
        stretch = jnp.exp(-0.5 * log_square)
        return jax.tree.map(lambda n: (stretch * n).astype(n.dtype), Normal().sample(key_normal, like))

    def log_prob(self, z: PyTree) -> Float[Array, ""]:
        size, square = _size_and_square(z)
        half = 0.5 * (self.df + size)
        constant = math.lgamma(half) - math.lgamma(0.5 * self.df) - 0.5 * size * math.log(math.pi * self.df)
        return constant - half * jnp.log1p(square / self.df)

    def score(self, z: PyTree) -> PyTree:
        size, square = _size_and_square(z)
        pull = -(self.df + size) / (self.df + square)
        return jax.tree.map(lambda leaf: pull * leaf, z)


def _size_and_square(z: PyTree) -> tuple[int, Float[Array, ""]]:
    leaves = jax.tree.leaves(z)
    return sum(leaf.size for leaf in leaves), sum((jnp.sum(leaf**2) for leaf in leaves), jnp.zeros(()))
