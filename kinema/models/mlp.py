"""Multilayer perceptron on the flattened sample: any shape, fast on a CPU, the right choice for a few dozen numbers."""

import math

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.models.checks import check_positive, check_sample
from kinema.models.embedding import Embedding
from kinema.models.layers import Linear, layer_norm, modulate
from kinema.models.registry import model

_EMBEDDING = 64


@model("mlp")
class MLP(eqx.Module):
    """`depth` layers h <- [h +] silu(norm(h W + b) (1 + scale) + shift), scale and shift from signal and condition.

    `residual=False` leaves the h + out. The output layer starts at zero.

    Raises:
        InputError: sizes not positive; x of another shape.
    """

    embedding: Embedding
    input: Linear
    layers: tuple[Linear, ...]
    modulations: tuple[Linear, ...]
    output: Linear
    shape: tuple[int, ...] = eqx.field(static=True)
    residual: bool = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 256,
        depth: int = 3,
        residual: bool = True,
        classes: int | None = None,
        features: int | None = None,
        key: PRNGKeyArray,
    ):
        check_positive(width=width, depth=depth)
        key_embedding, key_input, key_output, *keys = jr.split(key, 3 + 2 * depth)
        size = math.prod(shape)
        self.embedding = Embedding(_EMBEDDING, classes=classes, features=features, key=key_embedding)
        self.input = Linear(size, width, key=key_input)
        self.layers = tuple(Linear(width, width, key=k) for k in keys[:depth])
        self.modulations = tuple(Linear(_EMBEDDING, 2 * width, key=k) for k in keys[depth:])
        self.output = Linear(width, size, gain=0.0, key=key_output)
        self.shape = shape
        self.residual = residual

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, "..."]:
        check_sample(x, self.shape)
        level = self.embedding(signal, cond)
        h = self.input(x.reshape(-1).astype(self.input.weight.dtype))
        for layer, modulation in zip(self.layers, self.modulations):
            y = jax.nn.silu(modulate(layer_norm(layer(h)), modulation(level)))
            h = h + y if self.residual else y
        return self.output(h).reshape(x.shape).astype(x.dtype)
