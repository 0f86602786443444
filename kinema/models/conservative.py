"""Conservative networks: the output is the gradient of a scalar, so that its Jacobian is symmetric.

    net(x, signal, cond) = grad_x net.potential(x, signal, cond)

A field made of such an output by a factor and a multiple of x, as every parameterization of a generator is, is again a
gradient. A call costs about two passes of the network.

Reference: Salimans & Ho 2021; Du et al. 2023; Horvat & Pfister 2024.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_positive, check_sample
from kinema.models.embedding import Embedding
from kinema.models.layers import Linear, modulate

_EMBEDDING = 64


class PotentialMLP(eqx.Module):
    """Gradient of a scalar perceptron: `depth` layers h <- h + silu((h W + b) (1 + scale) + shift), then one number.

    Scale and shift come from signal and condition. There is no normalisation of layers: second derivatives in x stay
    cheap, as Fokker-Planck residuals need. The output layer starts at zero.

    >>> net = PotentialMLP((2,), width=16, key=jax.random.key(0))
    >>> net(jnp.ones(2), 0.5).shape, net.potential(jnp.ones(2), 0.5).shape
    ((2,), ())

    Raises:
        InputError: sizes not positive; x of another shape.
    """

    embedding: Embedding
    input: Linear
    layers: tuple[Linear, ...]
    modulations: tuple[Linear, ...]
    output: Linear
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 2,
        classes: int | None = None,
        features: int | None = None,
        key: PRNGKeyArray,
    ):
        check_positive(width=width, depth=depth)
        key_embedding, key_input, key_output, *keys = jr.split(key, 3 + 2 * depth)
        self.embedding = Embedding(_EMBEDDING, classes=classes, features=features, key=key_embedding)
        self.input = Linear(math.prod(shape), width, key=key_input)
        self.layers = tuple(Linear(width, width, key=k) for k in keys[:depth])
        self.modulations = tuple(Linear(_EMBEDDING, 2 * width, key=k) for k in keys[depth:])
        self.output = Linear(width, 1, gain=0.0, key=key_output)
        self.shape = shape

    def potential(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, ""]:
        check_sample(x, self.shape)
        level = self.embedding(signal, cond)
        h = jnp.tanh(self.input(x.reshape(-1).astype(self.input.weight.dtype)))
        for layer, modulation in zip(self.layers, self.modulations):
            h = h + jax.nn.silu(modulate(layer(h), modulation(level)))
        return self.output(h)[0].astype(x.dtype)

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, "..."]:
        return jax.grad(self.potential)(x, signal, cond)


class Conservative(eqx.Module):
    """Any network made conservative: the gradient of x . net(x, signal, cond).

    The potential is 0 at x = 0 for every signal, so it cannot follow a log density that shifts with time: where
    potentials are compared and not gradients, use `PotentialMLP`.

    >>> from kinema import models
    >>> net = Conservative(models.make("mlp", shape=(2,), width=16, key=jax.random.key(0)))
    >>> net(jnp.ones(2), 0.5).shape
    (2,)

    Raises:
        InputError: an output that is not like x.
    """

    net: eqx.Module

    def potential(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, ""]:
        y = self.net(x, signal, cond)  # pyright: ignore[reportCallIssue]
        if getattr(y, "shape", None) != x.shape:
            raise InputError(f"net must return an array like x, of shape {x.shape}, got {y}")
        return jnp.sum(x * y)

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, "..."]:
        return jax.grad(self.potential)(x, signal, cond)
