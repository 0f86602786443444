"""Noise laws: what z in x_t = a x1 + b x0 + s z is drawn from."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree


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
