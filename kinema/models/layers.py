"""Layers of all networks, channels last, for one sample: the last axis is features, axes before it are positions.

With weights on the right, `vmap` over samples turns every layer into one large matrix product (or one batched
convolution) without a transpose.
"""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError


class Linear(eqx.Module):
    """x W + b over the last axis. W is normal with variance gain^2 / inputs; gain 0 starts at zero."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0, key: PRNGKeyArray):
        self.weight = normal(key, (inputs, outputs), gain / math.sqrt(inputs))
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*positions inputs"]) -> Float[Array, "*positions outputs"]:
        return x @ self.weight + self.bias


class Conv(eqx.Module):
    """Convolution of width 3 over all axes but the last, zeros outside; n positions become ceil(n / stride)."""

    weight: Float[Array, "*kernel inputs outputs"]
    bias: Float[Array, " outputs"]
    stride: int = eqx.field(static=True)

    def __init__(self, axes: int, inputs: int, outputs: int, *, stride: int = 1, gain: float = 1.0, key: PRNGKeyArray):
        self.weight = normal(key, (3,) * axes + (inputs, outputs), gain / math.sqrt(inputs * 3**axes))
        self.bias = jnp.zeros(outputs)
        self.stride = stride

    def __call__(self, x: Float[Array, "*positions inputs"]) -> Float[Array, "*moved outputs"]:
        convolve = _as_products if jax.default_backend() == "cpu" else _as_convolution
        return convolve(x, self.weight, self.stride) + self.bias


def _as_convolution(x: Array, weight: Array, stride: int) -> Array:
    axes = weight.ndim - 2
    letters = "XYZ"[:axes]
    y = lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=(stride,) * axes,
        padding=[(1, 1)] * axes,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    return y[0]


def _as_products(x: Array, weight: Array, stride: int) -> Array:
    """The same as one product over all neighbours. Inside a scan XLA runs a convolution on CPU over 20 times slower."""
    axes, sizes = weight.ndim - 2, x.shape[:-1]
    padded = jnp.pad(x, [(1, 1)] * axes + [(0, 0)])
    shifts = itertools.product(range(3), repeat=axes)
    near = [padded[tuple(slice(k, k + n, stride) for k, n in zip(shift, sizes))] for shift in shifts]
    return jnp.concatenate(near, -1) @ weight.reshape(-1, weight.shape[-1])


class GroupNorm(eqx.Module):
    """Zero mean, unit variance over positions and a group of features; then scale and shift by feature."""

    scale: Float[Array, " features"]
    shift: Float[Array, " features"]

    def __init__(self, features: int):
        self.scale = jnp.ones(features)
        self.shift = jnp.zeros(features)

    def __call__(self, x: Float[Array, "*positions features"]) -> Float[Array, "*positions features"]:
        return group_norm(x) * self.scale + self.shift


class Attention(eqx.Module):
    """Multi-head attention among all positions; starts at zero when `gain` is 0."""

    qkv: Linear
    output: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, gain: float = 1.0, key: PRNGKeyArray):
        if width % heads:
            raise InputError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        key_qkv, key_output = jr.split(key)
        self.qkv = Linear(width, 3 * width, key=key_qkv)
        self.output = Linear(width, width, gain=gain, key=key_output)
        self.heads = heads

    def __call__(self, x: Float[Array, "positions width"]) -> Float[Array, "positions width"]:
        qkv = self.qkv(x).reshape(x.shape[0], 3, self.heads, -1)
        mixed = jax.nn.dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return self.output(mixed.reshape(x.shape))


def normal(key: PRNGKeyArray, shape: tuple[int, ...], deviation: float = 1.0) -> Float[Array, "..."]:
    """Initial weights: normal, mean 0, drawn by NumPy from the bits of `key`.

    The same bits on every device; and a network of many shapes is made in milliseconds, where drawing in XLA compiles a
    program of about half a second for every shape.
    """
    dtype = jnp.zeros(()).dtype

    def draw(bits) -> np.ndarray:
        numbers = np.random.default_rng(np.asarray(bits).ravel().tolist()).standard_normal(shape)
        return np.asarray(deviation * numbers, dtype)

    bits = jr.key_data(key)
    if isinstance(bits, Tracer):
        return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), bits, vmap_method="sequential")
    return jnp.asarray(draw(bits))


def layer_norm(x: Float[Array, "*positions features"]) -> Float[Array, "*positions features"]:
    """Zero mean, unit variance over the last axis."""
    return _standardize(x, (-1,))


def group_norm(x: Float[Array, "*positions features"]) -> Float[Array, "*positions features"]:
    """Zero mean, unit variance over positions and a group of features: 8 groups, or 1 below 32 features."""
    features = x.shape[-1]
    groups = math.gcd(features, 8) if features >= 32 else 1
    grouped = x.reshape(*x.shape[:-1], groups, features // groups)
    return _standardize(grouped, (*range(x.ndim - 1), -1)).reshape(x.shape)


def modulate(
    x: Float[Array, "*positions features"], scale_shift: Float[Array, " twice"]
) -> Float[Array, "*positions features"]:
    """x (1 + scale) + shift, with both halves of `scale_shift`, by feature."""
    scale, shift = jnp.split(scale_shift, 2)
    return x * (1 + scale) + shift


def position_code(grid: tuple[int, ...], width: int) -> Float[Array, "*grid width"]:
    """Sines and cosines of the place on the grid, an equal share of the features an axis (the rest zero).

    Periods run from 2 pi to 2,000 pi positions, so that any grid length may be used after training.
    """
    count = width // (2 * len(grid))
    frequencies = 1000.0 ** -jnp.linspace(0.0, 1.0, count)
    codes = []
    for axis, length in enumerate(grid):
        angle = jnp.arange(length)[:, None] * frequencies
        code = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        code = code.reshape((length,) + (1,) * (len(grid) - 1 - axis) + (2 * count,))
        codes.append(jnp.broadcast_to(code, (*grid, 2 * count)))
    spare = jnp.zeros((*grid, width - 2 * count * len(grid)))
    return jnp.concatenate([*codes, spare], -1)


def _standardize(x: Array, axes: tuple[int, ...]) -> Array:
    # Moments in half precision would be wrong in the third digit.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    return (centred * lax.rsqrt(variance + 1e-5)).astype(x.dtype)
