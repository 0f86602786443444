"""The signal level and the condition of a sample as one vector, from which a network's blocks take scales and shifts.

The signal is the log signal-to-noise ratio of `path.signal(t)`, about -12..12. A condition is a class label, a vector
of known numbers, or nothing; every conditional network also knows the null condition, which guidance needs.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_label, check_positive
from kinema.models.layers import Linear, normal

_FREQUENCIES = 16
# The slowest wave (period 48) tells every signal in -12..12 apart; the fastest (1.5) is finer than any grid of steps.
_LONGEST, _SHORTEST = 48.0, 1.5


def signal_features(signal) -> Float[Array, " features"]:
    """Sines and cosines of a scalar signal at 16 periods from 48 down to 1.5, and the signal / 12: (33,).

    Raises:
        InputError: signal is not one number.
    """
    signal = jnp.asarray(signal)
    if signal.shape != () or not jnp.issubdtype(signal.dtype, jnp.number):
        raise InputError(f"signal must be one number, got shape {signal.shape}; use jax.vmap for a batch")
    signal = signal.astype(jnp.promote_types(signal.dtype, jnp.float32))
    powers = jnp.arange(_FREQUENCIES) / (_FREQUENCIES - 1)
    angle = 2 * math.pi / _LONGEST * (_LONGEST / _SHORTEST) ** powers * signal
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle), signal[None] / 12])


class LabelCondition(eqx.Module):
    """A learned vector for each class label 0..classes-1, and one for the null label `classes` (also `cond=None`).

    A label out of range is refused where it is concrete; inside compiled code its embedding is NaN.
    """

    table: Float[Array, "labels width"]

    def __init__(self, classes: int, width: int, *, key: PRNGKeyArray):
        check_positive(classes=classes)
        self.table = normal(key, (classes + 1, width))

    @property
    def null(self) -> Array:
        return jnp.array(len(self.table) - 1, jnp.int32)

    def __call__(self, cond) -> Float[Array, " width"]:
        label = self.null if cond is None else jnp.asarray(cond)
        check_label(label, len(self.table) - 1)
        # A negative index would count from the end.
        index = jnp.where(label < 0, len(self.table), label)
        return self.table.at[index].get(mode="fill", fill_value=jnp.nan)


class VectorCondition(eqx.Module):
    """A linear map of `features` numbers of about unit variance, in any shape. All NaN (also `cond=None`) is null."""

    linear: Linear
    unknown: Float[Array, " width"]
    features: int = eqx.field(static=True)

    def __init__(self, features: int, width: int, *, key: PRNGKeyArray):
        check_positive(features=features)
        key_linear, key_unknown = jr.split(key)
        self.linear = Linear(features, width, key=key_linear)
        self.unknown = normal(key_unknown, (width,))
        self.features = features

    @property
    def null(self) -> Array:
        return jnp.full(self.features, jnp.nan, self.unknown.dtype)

    def __call__(self, cond) -> Float[Array, " width"]:
        if cond is None:
            return self.unknown
        vector = jnp.asarray(cond)
        if vector.size != self.features or not jnp.issubdtype(vector.dtype, jnp.number):
            raise InputError(f"cond must hold {self.features} numbers, got {vector.dtype} of shape {vector.shape}")
        vector = vector.reshape(-1).astype(self.unknown.dtype)
        null = jnp.all(jnp.isnan(vector))
        # The inner `where` keeps NaN out of the gradient.
        return jnp.where(null, self.unknown, self.linear(jnp.where(null, 0.0, vector)))


class Embedding(eqx.Module):
    """Two layers on the signal's features; the condition's vector is added between them.

    Raises:
        InputError: both `classes` and `features` given; a condition that the network was not made for.
    """

    hidden: Linear
    output: Linear
    condition: LabelCondition | VectorCondition | None

    def __init__(self, width: int, *, classes: int | None = None, features: int | None = None, key: PRNGKeyArray):
        if classes is not None and features is not None:
            raise InputError(f"classes or features, not both, got classes={classes}, features={features}")
        key_hidden, key_output, key_condition = jr.split(key, 3)
        self.hidden = Linear(2 * _FREQUENCIES + 1, width, key=key_hidden)
        self.output = Linear(width, width, key=key_output)
        self.condition = None
        if classes is not None:
            self.condition = LabelCondition(classes, width, key=key_condition)
        if features is not None:
            self.condition = VectorCondition(features, width, key=key_condition)

    def __call__(self, signal, cond=None) -> Float[Array, " width"]:
        vector = self.hidden(signal_features(signal).astype(self.hidden.weight.dtype))
        if self.condition is not None:
            vector = vector + self.condition(cond)
        elif cond is not None:
            raise InputError("cond was given, but the network was made without classes or features")
        return jax.nn.silu(self.output(jax.nn.silu(vector)))


def null_condition(net) -> Array | None:
    """The condition that tells `net` nothing: its null label, a vector of NaN, or None for an unconditional network.

    Training for guidance swaps it in for a share of the samples: `jnp.where(drop, null_condition(net), cond)`.

    >>> null_condition(MLP((2,), classes=10, key=jax.random.key(0)))
    Array(10, dtype=int32)
    """
    condition = net.embedding.condition
    return None if condition is None else condition.null
