"""Motion of bodies as one token a body and axis, each holding its whole time series.

A token sees every frame at once, so smooth motion is one linear map away; tokens talk through means over axes and
bodies, so bodies are exchangeable and their number is free.
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
from kinema.models.layers import Linear, layer_norm, modulate, normal
from kinema.models.registry import model

_EMBEDDING = 128


@model("motion_tokens")
class MotionTokens(eqx.Module):
    """Sample (frames, bodies, axes, channels), e.g. two balls in the plane with channels [x, v]: (16, 2, 2, 2).

    Without channels, (frames, bodies, axes), positions alone are meant. `depth` blocks
    h <- h + MLP(silu(mix(norm(h) (1 + scale) + shift))), scale and shift from signal and condition, `expand * width`
    hidden features. `distinct_axes` learns an offset for every axis (gravity), `distinct_bodies` one for every body
    where they are not alike; then the number of bodies is that of `shape`, else it is free. The output starts at zero.

    Raises:
        InputError: sizes not positive; shape of another rank; x with other frames, axes or channels.
    """

    embedding: Embedding
    input: Linear
    axis_offset: Float[Array, "axes width"] | None
    body_offset: Float[Array, "bodies 1 width"] | None
    blocks: tuple["_Block", ...]
    modulation: Linear
    output: Linear
    shape: tuple[int | None, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 192,
        depth: int = 4,
        expand: int = 2,
        distinct_axes: bool = True,
        distinct_bodies: bool = False,
        classes: int | None = None,
        features: int | None = None,
        key: PRNGKeyArray,
    ):
        check_positive(width=width, depth=depth, expand=expand)
        if len(shape) not in (3, 4):
            raise InputError(f"shape must be (frames, bodies, axes) or (frames, bodies, axes, channels), got {shape}")
        frames, bodies, axes, *channels = shape
        series = frames * math.prod(channels)
        key_embedding, key_input, key_modulation, key_output, *keys = jr.split(key, 4 + depth)
        self.embedding = Embedding(_EMBEDDING, classes=classes, features=features, key=key_embedding)
        self.input = Linear(series, width, key=key_input)
        self.axis_offset = jnp.zeros((axes, width)) if distinct_axes else None
        self.body_offset = jnp.zeros((bodies, 1, width)) if distinct_bodies else None
        self.blocks = tuple(_Block(width, expand * width, _EMBEDDING, key=k) for k in keys)
        self.modulation = Linear(_EMBEDDING, 2 * width, key=key_modulation)
        self.output = Linear(width, series, gain=0.0, key=key_output)
        self.shape = (frames, bodies if distinct_bodies else None, axes, *channels)

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, "..."]:
        check_sample(x, self.shape)
        level = self.embedding(signal, cond)
        by_token = jnp.moveaxis(x, 0, 2)
        h = self.input(by_token.reshape(*by_token.shape[:2], -1).astype(self.input.weight.dtype))
        for offset in (self.axis_offset, self.body_offset):
            h = h if offset is None else h + offset
        for block in self.blocks:
            h = block(h, level)
        y = self.output(modulate(layer_norm(h), self.modulation(level)))
        return jnp.moveaxis(y.reshape(by_token.shape), 2, 0).astype(x.dtype)


class _Mix(eqx.Module):
    """A x + B (mean over axes) + C (mean over bodies) + D (mean over both) + b.

    The same maps as from {self, other axes, other bodies, both}, with fewer products (9 width^2 against 16 for two
    bodies in the plane), and defined for one body too.
    """

    weights: Float[Array, "4 width width"]
    bias: Float[Array, " width"]

    def __init__(self, width: int, *, key: PRNGKeyArray):
        self.weights = normal(key, (4, width, width), 1 / math.sqrt(2 * width))
        self.bias = jnp.zeros(width)

    def __call__(self, x: Float[Array, "bodies axes width"]) -> Float[Array, "bodies axes width"]:
        over_axes = x.mean(1, keepdims=True)
        over_bodies = x.mean(0, keepdims=True)
        over_both = over_bodies.mean(1, keepdims=True)
        own, axes, bodies, both = self.weights
        return x @ own + over_axes @ axes + (over_bodies @ bodies + over_both @ both) + self.bias


class _Block(eqx.Module):
    modulation: Linear
    mix: _Mix
    hidden: Linear
    output: Linear

    def __init__(self, width: int, hidden: int, embedding: int, *, key: PRNGKeyArray):
        key_modulation, key_mix, key_hidden, key_output = jr.split(key, 4)
        self.modulation = Linear(embedding, 2 * width, gain=0.5, key=key_modulation)
        self.mix = _Mix(width, key=key_mix)
        self.hidden = Linear(width, hidden, key=key_hidden)
        self.output = Linear(hidden, width, gain=0.5, key=key_output)

    def __call__(self, h: Float[Array, "bodies axes width"], level) -> Float[Array, "bodies axes width"]:
        y = self.mix(modulate(layer_norm(h), self.modulation(level)))
        return h + self.output(jax.nn.silu(self.hidden(jax.nn.silu(y))))
