"""Laws with a network in them: dx/dt = physics(t, x) + field(x), whatever of the physics is known.

[Chen et al. 2018 (neural ODE); Rackauckas et al. 2020 (universal differential equations)]
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_positive
from kinema.models.layers import Linear


def lipswish(x: Array) -> Array:
    """0.909 x sigmoid(x): smooth, slope at most 1."""
    return 0.909 * jax.nn.silu(x)


class VectorField(eqx.Module):
    """Multilayer perceptron from numbers to numbers: `net(*parts)` joins its parts, each (n,) or one number.

    `bounded`: the output is scale tanh(.) with one learned scale an output, so that a solve cannot run away.

    >>> net = VectorField(3, 2, width=8, key=jr.key(0))
    >>> net(0.5, jnp.ones(2)).shape
    (2,)

    Raises:
        InputError: sizes not positive; parts that do not make `inputs` numbers.
    """

    layers: tuple[Linear, ...]
    scale: Float[Array, " outputs"] | None
    activation: Callable = eqx.field(static=True)
    inputs: int = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 64,
        depth: int = 2,
        activation: Callable = jax.nn.softplus,
        bounded: bool = False,
        gain: float = 1.0,
        key: PRNGKeyArray,
    ):
        check_positive(inputs=inputs, outputs=outputs, width=width, depth=depth)
        sizes = [inputs, *[width] * depth, outputs]
        gains = [1.0] * depth + [gain]
        keys = jr.split(key, depth + 1)
        self.layers = tuple(Linear(a, b, gain=g, key=k) for a, b, g, k in zip(sizes[:-1], sizes[1:], gains, keys))
        self.scale = jnp.ones(outputs) if bounded else None
        self.activation, self.inputs = activation, inputs

    def __call__(self, *parts: Any) -> Float[Array, " outputs"]:
        dtype = self.layers[0].weight.dtype
        h = jnp.concatenate([jnp.atleast_1d(jnp.asarray(part, dtype)) for part in parts])
        if h.shape != (self.inputs,):
            raise InputError(f"the field takes {self.inputs} numbers, got {h.shape}; use jax.vmap for a batch")
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        h = self.layers[-1](h)
        return h if self.scale is None else self.scale * jnp.tanh(h)


class NeuralODE(eqx.Module):
    """The law dx/dt = physics(t, x, args) + field(x): a neural ODE, or with physics a universal one.

    `field` is any module from the state (d,) to (d,): a `VectorField`, or a formula found from one.

    >>> law = NeuralODE(VectorField(2, 2, width=8, key=jr.key(0)), physics=lambda t, x, args: -x)
    >>> law.drift(0.0, jnp.ones(2)).shape
    (2,)

    Raises:
        InputError: field or physics cannot be called.
    """

    field: Callable
    physics: Callable | None = None

    def __check_init__(self):
        if not callable(self.field) or not (self.physics is None or callable(self.physics)):
            raise InputError("field must be a function of the state, physics None or a function (t, x, args)")

    def drift(self, t: Any, x: Float[Array, " d"], args: Any = None) -> Float[Array, " d"]:
        hidden = self.field(x)
        return hidden if self.physics is None else self.physics(t, x, args) + hidden


class ScaledField(eqx.Module):
    """`field` between standardised numbers: outputs times `output`, inputs (x - mean) / deviation. Scales never learn.

    Raises:
        InputError: a deviation that is not positive.
    """

    field: Callable
    mean: tuple[float, ...] = eqx.field(static=True, converter=lambda x: tuple(map(float, x)))
    deviation: tuple[float, ...] = eqx.field(static=True, converter=lambda x: tuple(map(float, x)))
    output: tuple[float, ...] = eqx.field(static=True, converter=lambda x: tuple(map(float, x)))

    def __check_init__(self):
        if not all(math.isfinite(one) and one > 0 for one in self.deviation):
            raise InputError(f"deviation must be positive, got {self.deviation}")

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " outputs"]:
        inputs = (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.deviation, x.dtype)
        return jnp.asarray(self.output, x.dtype) * self.field(inputs)
