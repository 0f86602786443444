"""U-Net on a grid of one or two axes, channels last, for any grid size. Shared by the temporal and the image network.

Level i has min(2^i, 4) * width features. A grid of n positions becomes ceil(n / 2) one level down, and coming up is
cropped to its skip connection, so sizes need not divide.   [Ronneberger, Fischer & Brox 2015; Ho, Jain & Abbeel 2020]
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.models.checks import check_positive
from kinema.models.layers import Attention, Conv, GroupNorm, Linear, group_norm, layer_norm, modulate, position_code


class UNet(eqx.Module):
    """Stem, `levels` down, attention among all positions of the coarsest grid, up again. The last layer starts at zero.

    `depth` residual blocks a level, each way; scales and shifts from `level`, the embedding of signal and condition.
    """

    stem: Conv
    down: tuple[tuple["_Block", ...], ...]
    halve: tuple[Conv, ...]
    attention: Attention
    up: tuple[tuple["_Block", ...], ...]
    norm: GroupNorm
    output: Conv

    def __init__(
        self,
        axes: int,
        inputs: int,
        outputs: int,
        *,
        width: int,
        levels: int,
        depth: int,
        heads: int,
        embedding: int,
        key: PRNGKeyArray,
    ):
        check_positive(width=width, levels=levels, depth=depth, heads=heads)
        key_stem, key_down, key_halve, key_attention, key_up, key_output = jr.split(key, 6)
        widths = [width * min(2**i, 4) for i in range(levels)]
        self.stem = Conv(axes, inputs, width, key=key_stem)
        self.down = tuple(
            _stage(axes, before, after, depth, embedding, key=k)
            for before, after, k in zip([width, *widths], widths, jr.split(key_down, levels))
        )
        self.halve = tuple(Conv(axes, w, w, stride=2, key=k) for w, k in zip(widths[:-1], jr.split(key_halve, levels)))
        self.attention = Attention(widths[-1], heads, gain=0.5, key=key_attention)
        self.up = tuple(
            _stage(axes, below + here, here, depth, embedding, key=k)
            for here, below, k in zip(widths, [*widths[1:], widths[-1]], jr.split(key_up, levels))
        )
        self.norm = GroupNorm(width)
        self.output = Conv(axes, width, outputs, gain=0.0, key=key_output)

    def __call__(
        self, x: Float[Array, "*grid inputs"], level: Float[Array, " embedding"]
    ) -> Float[Array, "*grid outputs"]:
        h = self.stem(x)
        skips = []
        for i, blocks in enumerate(self.down):
            h = _through(blocks, self.halve[i - 1](h) if i else h, level)
            skips.append(h)
        tokens = layer_norm(h) + position_code(h.shape[:-1], h.shape[-1]).astype(h.dtype)
        h = h + self.attention(tokens.reshape(-1, h.shape[-1])).reshape(h.shape)
        for i in reversed(range(len(self.up))):
            if i < len(self.up) - 1:
                h = _double(h, skips[i].shape[:-1])
            h = _through(self.up[i], jnp.concatenate([h, skips[i]], -1), level)
        return self.output(jax.nn.silu(self.norm(h)))


class _Block(eqx.Module):
    """Two convolutions of width 3 with a residual connection; the second starts small."""

    norm: GroupNorm
    first: Conv
    modulation: Linear
    second: Conv
    skip: Linear | None

    def __init__(self, axes: int, inputs: int, outputs: int, embedding: int, *, key: PRNGKeyArray):
        key_first, key_modulation, key_second, key_skip = jr.split(key, 4)
        self.norm = GroupNorm(inputs)
        self.first = Conv(axes, inputs, outputs, key=key_first)
        self.modulation = Linear(embedding, 2 * outputs, gain=0.5, key=key_modulation)
        self.second = Conv(axes, outputs, outputs, gain=0.5, key=key_second)
        self.skip = None if inputs == outputs else Linear(inputs, outputs, key=key_skip)

    def __call__(
        self, x: Float[Array, "*grid inputs"], level: Float[Array, " embedding"]
    ) -> Float[Array, "*grid outputs"]:
        y = self.first(jax.nn.silu(self.norm(x)))
        y = self.second(jax.nn.silu(modulate(group_norm(y), self.modulation(level))))
        return y + (x if self.skip is None else self.skip(x))


def _stage(
    axes: int, inputs: int, outputs: int, depth: int, embedding: int, *, key: PRNGKeyArray
) -> tuple[_Block, ...]:
    keys = jr.split(key, depth)
    return tuple(_Block(axes, outputs if i else inputs, outputs, embedding, key=k) for i, k in enumerate(keys))


def _through(blocks: tuple[_Block, ...], x: Array, level: Array) -> Array:
    for block in blocks:
        x = block(x, level)
    return x


def _double(x: Array, grid: tuple[int, ...]) -> Array:
    """Every position twice along every axis, cropped to `grid`."""
    for axis, length in enumerate(grid):
        x = jnp.repeat(x, 2, axis=axis, total_repeat_length=2 * x.shape[axis])
        x = jax.lax.slice_in_dim(x, 0, length, axis=axis)
    return x
