"""Diffusion transformer: patches of a series, an image or a video are tokens; signal and condition steer every block.

Blocks start as the identity (zero gates), the output at zero.   [Peebles & Xie 2023]
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_positive, check_sample
from kinema.models.embedding import Embedding
from kinema.models.layers import Attention, Linear, layer_norm, modulate, position_code
from kinema.models.registry import model

_EMBEDDING = 128


@model("dit")
class DiT(eqx.Module):
    """Sample (*grid, channels) with a grid of one to three axes, whose lengths may differ from `shape`'s.

    `patch` positions an axis (one number for all axes, or one an axis) make a token; a grid that does not divide is
    padded with zeros and cropped. Cost grows with the square of the number of tokens: keep it under about 1,000.

    Raises:
        InputError: sizes not positive; width no multiple of heads; shape of another rank; x with other channels.
    """

    embedding: Embedding
    input: Linear
    blocks: tuple["_Block", ...]
    modulation: Linear
    output: Linear
    shape: tuple[int | None, ...] = eqx.field(static=True)
    patch: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        patch: int | Sequence[int] = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expand: int = 4,
        classes: int | None = None,
        features: int | None = None,
        key: PRNGKeyArray,
    ):
        check_positive(width=width, depth=depth, heads=heads, expand=expand)
        axes = len(shape) - 1
        if not 1 <= axes <= 3:
            raise InputError(f"shape must be (*grid, channels) with one to three grid axes, got {shape}")
        self.patch = (patch,) * axes if isinstance(patch, int) else tuple(patch)
        if len(self.patch) != axes:
            raise InputError(f"patch must be one number or {axes}, got {patch}")
        for size in self.patch:
            check_positive(patch=size)
        key_embedding, key_input, key_modulation, key_output, *keys = jr.split(key, 4 + depth)
        numbers = math.prod(self.patch) * shape[-1]
        self.embedding = Embedding(_EMBEDDING, classes=classes, features=features, key=key_embedding)
        self.input = Linear(numbers, width, key=key_input)
        self.blocks = tuple(_Block(width, heads, expand * width, key=k) for k in keys)
        self.modulation = Linear(_EMBEDDING, 2 * width, gain=0.0, key=key_modulation)
        self.output = Linear(width, numbers, gain=0.0, key=key_output)
        self.shape = (None,) * axes + (shape[-1],)

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, "..."]:
        check_sample(x, self.shape)
        level = self.embedding(signal, cond)
        patches = _cut(x.astype(self.input.weight.dtype), self.patch)
        grid, width = patches.shape[:-1], self.input.weight.shape[1]
        h = self.input(patches) + position_code(grid, width).astype(patches.dtype)
        h = h.reshape(-1, width)
        for block in self.blocks:
            h = block(h, level)
        y = self.output(modulate(layer_norm(h), self.modulation(level)))
        return _join(y.reshape(*grid, -1), self.patch, x.shape).astype(x.dtype)


class _Block(eqx.Module):
    modulation: Linear
    attention: Attention
    hidden: Linear
    output: Linear

    def __init__(self, width: int, heads: int, hidden: int, *, key: PRNGKeyArray):
        key_modulation, key_attention, key_hidden, key_output = jr.split(key, 4)
        self.modulation = Linear(_EMBEDDING, 6 * width, gain=0.0, key=key_modulation)
        self.attention = Attention(width, heads, key=key_attention)
        self.hidden = Linear(width, hidden, key=key_hidden)
        self.output = Linear(hidden, width, key=key_output)

    def __call__(
        self, h: Float[Array, "tokens width"], level: Float[Array, " embedding"]
    ) -> Float[Array, "tokens width"]:
        attend, think, gates = jnp.split(self.modulation(level), 3)
        gate_attend, gate_think = jnp.split(gates, 2)
        h = h + gate_attend * self.attention(modulate(layer_norm(h), attend))
        return h + gate_think * self.output(jax.nn.gelu(self.hidden(modulate(layer_norm(h), think))))


def _cut(x: Float[Array, "*grid channels"], patch: tuple[int, ...]) -> Float[Array, "*coarse numbers"]:
    """Patches of `x`, padded at the far end; a patch's numbers are in the order (*patch, channels)."""
    axes = len(patch)
    x = jnp.pad(x, [(0, -n % p) for n, p in zip(x.shape, patch)] + [(0, 0)])
    pairs = [n for length, p in zip(x.shape, patch) for n in (length // p, p)]
    x = x.reshape(*pairs, x.shape[-1])
    x = x.transpose(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2), 2 * axes)
    return x.reshape(*x.shape[:axes], -1)


def _join(
    patches: Float[Array, "*coarse numbers"], patch: tuple[int, ...], shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Undo `_cut`, cropped to `shape`."""
    axes = len(patch)
    x = patches.reshape(*patches.shape[:-1], *patch, shape[-1])
    x = x.transpose(*(i for pair in zip(range(axes), range(axes, 2 * axes)) for i in pair), 2 * axes)
    x = x.reshape(*(n * p for n, p in zip(patches.shape, patch)), shape[-1])
    return x[tuple(slice(n) for n in shape[:-1])]
