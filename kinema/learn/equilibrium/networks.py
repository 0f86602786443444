"""Layered networks with feedback: dense and convolutional layers, feedback weights at any angle to the forward ones.

    u_l = map_l(a_{l-1}) + transpose of feedback_l at a_l, applied to a_{l+1}

With feedback_l = map_{l+1} this is the gradient of an energy and the Jacobian symmetric, pooling included.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from kinema.errors import InputError
from kinema.learn.equilibrium.dynamics import Relaxation
from kinema.learn.equilibrium.holomorphic import affine, dsilu, softmax_pool, steep_sigmoid
from kinema.models import layers
from kinema.models.checks import as_shape, check_positive


class Dense(eqx.Module):
    """The flattened activity times a matrix, plus a bias unless it is None. Weights have variance 2 / (ins + outs)."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"] | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, key: PRNGKeyArray):
        self.weight = layers.normal(key, (inputs, outputs), math.sqrt(2 / (inputs + outputs)))
        self.bias = jnp.zeros(outputs) if bias else None

    def __call__(self, a: Inexact[Array, "..."]) -> Inexact[Array, " outputs"]:
        drive = affine(lambda a: a @ self.weight, a.reshape(-1))
        return drive if self.bias is None else drive + self.bias


class Convolution(eqx.Module):
    """A convolution of width 3, then softmax pooling over 2 x 2 if `pool`. Activities are (height, width, channels)."""

    conv: layers.Conv
    pool: bool = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, *, pool: bool = True, key: PRNGKeyArray):
        self.conv = layers.Conv(2, inputs, outputs, gain=math.sqrt(2 * inputs / (inputs + outputs)), key=key)
        self.pool = pool

    def __call__(self, a: Inexact[Array, "height width inputs"]) -> Inexact[Array, "h w outputs"]:
        drive = affine(self.conv, a)
        return softmax_pool(drive) if self.pool else drive


class Layered(Relaxation):
    """Layers one above the other, each driven by the one below and by feedback from the one above.

    `feedback[l]` has the shapes of `maps[l + 1]` and weights of its own; None: the forward ones, the network has an
    energy. Any holomorphic `activation` of one array; ReLU does for real nudges.

    Raises:
        InputError: feedback of another number than maps less one.
    """

    maps: tuple[Dense | Convolution, ...]
    feedback: tuple[Dense | Convolution, ...] | None
    readout: Dense
    activation: Callable = eqx.field(static=True)

    def __check_init__(self):
        if self.feedback is not None and len(self.feedback) != len(self.maps) - 1:
            raise InputError(f"feedback needs {len(self.maps) - 1} maps, one less than maps, got {len(self.feedback)}")

    def drive(self, a, x):
        u = [forward(below) for forward, below in zip(self.maps, (x, *a[:-1]))]
        for level, back in enumerate(self.maps[1:] if self.feedback is None else self.feedback):
            _, transpose = jax.vjp(back, a[level])
            u[level] = u[level] + transpose(a[level + 1])[0]
        return tuple(u)

    def activate(self, u):
        return tuple(self.activation(layer) for layer in u)

    def out(self, a):
        return self.readout(a[-1])

    def init_state(self, x):
        shapes = []
        for forward in self.maps:
            x = jax.eval_shape(forward, x)
            shapes.append(x)
        return tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)


def dense_network(
    sizes: Sequence[int],
    outputs: int,
    *,
    angle: float | None = 90.0,
    activation: Callable = steep_sigmoid,
    key: PRNGKeyArray,
) -> Layered:
    """Dense layers: `sizes` are those of the input and of each layer, `outputs` that of the readout.

    `angle` in degrees is between feedback and forward weights: 0 starts symmetric, 90 independent, None ties them.

    >>> net = dense_network((64, 32, 16), 10, key=jr.key(0))
    >>> [layer.shape for layer in net.init_state(jnp.zeros(64))]
    [(32,), (16,)]

    Raises:
        InputError: fewer than two sizes, or one that is no positive integer; angle outside 0..180.
    """
    sizes = as_shape(sizes)
    check_positive(outputs=outputs)
    if len(sizes) < 2:
        raise InputError(f"sizes must hold the input's and one for each layer, got {sizes}")
    key_maps, key_back, key_out = jr.split(key, 3)
    pairs = list(pairwise(sizes))
    maps = tuple(Dense(*pair, key=k) for pair, k in zip(pairs, jr.split(key_maps, len(pairs))))
    others = [Dense(*pair, bias=False, key=k) for pair, k in zip(pairs[1:], jr.split(key_back, len(pairs)))]
    return Layered(maps, _turned(maps[1:], others, angle), Dense(sizes[-1], outputs, key=key_out), activation)


def conv_network(
    shape: Sequence[int],
    channels: Sequence[int],
    outputs: int,
    *,
    angle: float | None = 90.0,
    pool: bool = True,
    activation: Callable = dsilu,
    key: PRNGKeyArray,
) -> Layered:
    """Convolutions on pictures of `shape` (height, width, channels), one layer for each of `channels`, then a readout.

    With `pool` each layer halves the sides by softmax pooling. `angle` as for `dense_network`.

    >>> net = conv_network((8, 8, 1), (4, 6), 10, key=jr.key(0))
    >>> [layer.shape for layer in net.init_state(jnp.zeros((8, 8, 1)))]
    [(4, 4, 4), (2, 2, 6)]

    Raises:
        InputError: shape or channels not of positive integers, too many layers for the sides, angle outside 0..180.
    """
    (height, width, inputs), channels = as_shape(shape), as_shape(channels)
    check_positive(outputs=outputs)
    halvings = len(channels) if pool else 0
    if not channels or min(height, width) < 2**halvings:
        raise InputError(
            f"{len(channels)} layers with pooling need sides of {2**halvings} and more, got {tuple(shape)}"
        )
    key_maps, key_back, key_out = jr.split(key, 3)
    pairs = list(zip((inputs, *channels), channels))
    maps = tuple(Convolution(*pair, pool=pool, key=k) for pair, k in zip(pairs, jr.split(key_maps, len(pairs))))
    others = [Convolution(*pair, pool=pool, key=k) for pair, k in zip(pairs[1:], jr.split(key_back, len(pairs)))]
    features = (height >> halvings) * (width >> halvings) * channels[-1]
    return Layered(maps, _turned(maps[1:], others, angle), Dense(features, outputs, key=key_out), activation)


def _turned(forward: Sequence, others: Sequence, angle: float | None) -> tuple | None:
    """Feedback weights cos(angle) forward + sin(angle) other."""
    if angle is None:
        return None
    if not 0 <= angle <= 180:
        raise InputError(f"angle must be in 0..180 degrees, or None for tied weights, got {angle}")
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))

    def weight(layer):
        return layer.conv.weight if isinstance(layer, Convolution) else layer.weight

    return tuple(
        eqx.tree_at(weight, other, cosine * weight(one) + sine * weight(other)) for one, other in zip(forward, others)
    )
