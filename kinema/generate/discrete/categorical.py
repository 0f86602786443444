"""Categorical draws in float32 whose temperature is 1.

The largest of log p_k + G_k falls on k with probability p_k if G is Gumbel noise. From a uniform number of b bits G
stays below -log(-log(1 - 2^-b)), 15.94 for `jax.random.categorical` in float32, and a law with a class near 1 among
classes near 2^-b is drawn too cold (`truncation`). Here clocks race instead: the least E_k / p_k wins, with

    E = -log(1 - v),    v = (32 random bits + 1/2) / 2^32,

where the clocks that decide, the early ones, are small numbers, of which float32 has plenty: as if G went to 22.9, for
as many random bits and one logarithm less. `jax.random.categorical(mode="high")` comes as far with twice the bits.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray, UInt32

from kinema.errors import InputError

LARGEST = 22.87  # 33 log 2, the Gumbel number that the earliest clock stands for


def categorical(key: PRNGKeyArray, log_p: Float[Array, "*rows classes"]) -> Int[Array, "*rows"]:
    """One class for every row of log probabilities, which need not be normalised; -inf is never drawn.

    Half precision is widened to float32 first.

    >>> categorical(jr.key(0), jnp.log(jnp.array([[0.0, 1.0], [1.0, 0.0]]))).tolist()
    [1, 0]
    """
    log_p = log_p.astype(jnp.promote_types(log_p.dtype, jnp.float32))
    clocks = exponential(jr.bits(key, log_p.shape, jnp.uint32))
    return jnp.argmax(jnp.exp(log_p - log_p.max(-1, keepdims=True)) / clocks, -1)


def exponential(bits: UInt32[Array, "..."]) -> Float32[Array, "..."]:
    """E of random bits; the least, 1.2e-10, and all up to 1 to the precision of float32, the largest 16.6."""
    v = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    return -jnp.log1p(-jnp.minimum(v, 1 - 2.0**-24))


def tempered(
    log_p: Float[Array, "*rows classes"], temperature: float = 1.0, top_p: float | None = None
) -> Float[Array, "*rows classes"]:
    """Rows of log p / temperature, then cut to the likeliest classes that hold `top_p` of the mass; not normalised.

    Temperature 0 leaves only the likeliest class.

    >>> jnp.isfinite(tempered(jnp.log(jnp.array([0.5, 0.3, 0.2])), top_p=0.6)).tolist()
    [True, True, False]

    Raises:
        InputError: a negative temperature, top_p not in (0, 1].
    """
    if not temperature >= 0:
        raise InputError(f"temperature must be positive, or 0 for the likeliest class, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must be in (0, 1], got {top_p}")
    if temperature == 0:
        first = jnp.arange(log_p.shape[-1]) == jnp.argmax(log_p, -1)[..., None]
        return jnp.where(first, 0.0, -jnp.inf)
    log_p = log_p / temperature
    if top_p is None:
        return log_p
    order = jnp.argsort(-log_p, -1)
    p = jax.nn.softmax(jnp.take_along_axis(log_p, order, -1), -1)
    kept = jnp.cumsum(p, -1) - p < top_p  # as long as those before do not suffice
    return jnp.where(jnp.take_along_axis(kept, jnp.argsort(order, -1), -1), log_p, -jnp.inf)
