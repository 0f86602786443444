"""Resampling: draw n ancestors among weighted particles, unbiased, inside jit.

Particle i of weight w_i (sum 1) gets N_i offspring with E[N_i] = n w_i. The four schemes differ only in
how N_i varies: most for multinomial, less for residual and stratified, least for systematic, where N_i is always
floor(n w_i) or ceil(n w_i). Weights come as logarithms, of any scale; one of -inf is never drawn.

When no weight is positive (all -inf), or one is NaN or +inf, there is nothing to draw from: every index is -1. `ess` is
then 0 or NaN, so a loop that resamples at `ess < threshold` can look there first.

Reference: Douc, Cappe & Moulines, "Comparison of resampling schemes for particle filtering", 2005.
"""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key

from kinema.errors import InputError


@partial(jax.jit, static_argnames="n")
def systematic(key: Key[Array, ""], log_weights: Float[Array, " particles"], n: int | None = None) -> Int[Array, " n"]:
    """One uniform u for all: offspring stand at u, u + 1, ..., u + n - 1 on the stretched weights. Least noise.

    `n` is by default the number of particles. Ancestors come in increasing order; equal weights give 0, 1, ..., n - 1.
    """
    _, n = _sizes(log_weights, n)
    whole, part = _ends(log_weights, n)
    return _spread(whole + (part > jr.uniform(key)), log_weights, n)


@partial(jax.jit, static_argnames="n")
def stratified(key: Key[Array, ""], log_weights: Float[Array, " particles"], n: int | None = None) -> Int[Array, " n"]:
    """One uniform for each of the n equal strata. Never worse than multinomial; |N_i - n w_i| < 2."""
    _, n = _sizes(log_weights, n)
    whole, part = _ends(log_weights, n)
    u = jr.uniform(key, (n,))
    return _spread(whole + (part > u[jnp.clip(whole, 0, n - 1)]), log_weights, n)


@partial(jax.jit, static_argnames="n")
def residual(key: Key[Array, ""], log_weights: Float[Array, " particles"], n: int | None = None) -> Int[Array, " n"]:
    """floor(n w_i) copies for sure, the rest multinomial from the fractions. The sure copies come first, in order."""
    size, n = _sizes(log_weights, n)
    expected = _expected(log_weights, n)
    sure = jnp.floor(expected)
    copies = sure.astype(jnp.int32)
    first = jnp.repeat(jnp.arange(size, dtype=jnp.int32), copies, total_repeat_length=n)
    rest = _draw(key, expected - sure, n)
    return _flagged(jnp.where(jnp.arange(n) < copies.sum(), first, rest), log_weights)


@partial(jax.jit, static_argnames="n")
def multinomial(key: Key[Array, ""], log_weights: Float[Array, " particles"], n: int | None = None) -> Int[Array, " n"]:
    """n independent draws. Most noise; the scheme that textbooks' proofs are about."""
    _, n = _sizes(log_weights, n)
    return _flagged(_draw(key, _scaled(log_weights), n), log_weights)


ALL_RESAMPLERS = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}


def ess(log_weights: Float[Array, " particles"]) -> Float[Array, ""]:
    """Effective sample size (sum w)^2 / sum w^2: n for equal weights, 1 for a single one, 0 if all are -inf."""
    weights = _scaled(log_weights)
    square = jnp.sum(weights**2)
    return jnp.sum(weights) ** 2 / jnp.where(square == 0, 1.0, square)


def logmeanexp(log_weights: Float[Array, " particles"]) -> Float[Array, ""]:
    """log(mean(exp(log_weights))) without overflow: the estimate of a log normaliser. -inf if all are -inf."""
    return jax.nn.logsumexp(log_weights) - jnp.log(log_weights.shape[0])


def _sizes(log_weights, n: int | None) -> tuple[int, int]:
    size = log_weights.shape[0]
    n = size if n is None else n
    if size < 1 or n < 1:
        raise InputError(f"at least one particle and one offspring are needed, got {size} particles and n={n}")
    return size, n


def _scaled(log_weights):
    """Weights with largest value 1; all 0 if none is positive."""
    top = jnp.max(log_weights)
    return jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0.0))


def _expected(log_weights, n: int):
    """Expected offspring n w_i; exactly 1 each for n equal weights."""
    weights = _scaled(log_weights)
    total = jnp.sum(weights)
    return n * weights / jnp.where(total > 0, total, 1.0)


def _ends(log_weights, n: int):
    """Upper ends of intervals of length n w_i laid end to end, as whole numbers and fractions in [0, 1).

    A float32 sum near 1e5 is off by .01, which would break floor/ceil. Fractions are therefore summed as integers in
    units of 2^-24, in two halves of 12 bits, so that sums of up to 2^20 of them are exact in any order.
    """
    if log_weights.shape[0] > 2**20:
        raise InputError(f"at most {2**20} particles, got {log_weights.shape[0]}; 'multinomial' has no such limit")
    length = _expected(log_weights, n)
    whole = jnp.floor(length)
    units = jnp.round((length - whole) * 2**24).astype(jnp.uint32)
    low = jnp.cumsum(units & 0xFFF, dtype=jnp.uint32)
    high = jnp.cumsum(units >> 12, dtype=jnp.uint32) + (low >> 12)
    part = (((high & 0xFFF) << 12) | (low & 0xFFF)).astype(length.dtype) * 2.0**-24
    return jnp.cumsum(whole, dtype=jnp.int32) + (high >> 12).astype(jnp.int32), part


def _spread(ends, log_weights, n: int):
    """Ancestor of every offspring, given how many offspring lie before each particle's upper end."""
    # What rounding lost or gained at the end belongs to the last particle that has weight at all.
    last = jnp.max(jnp.where(log_weights > -jnp.inf, jnp.arange(ends.shape[0]), -1))
    ends = jnp.where(jnp.arange(ends.shape[0]) >= last, n, jnp.minimum(ends, n))
    copies = jnp.diff(ends, prepend=0)
    indices = jnp.arange(ends.shape[0], dtype=jnp.int32)
    return _flagged(jnp.repeat(indices, copies, total_repeat_length=n), log_weights)


def _draw(key, weights, n: int):
    """n independent draws by inversion. A point on a boundary belongs to the right, so zeros are never drawn."""
    ends = jnp.cumsum(weights)
    index = jnp.searchsorted(ends, jr.uniform(key, (n,), ends.dtype) * ends[-1], side="right")
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))
    return jnp.minimum(index, last).astype(jnp.int32)


def _flagged(indices, log_weights):
    top = jnp.max(log_weights)  # NaN if any is
    return jnp.where(jnp.isfinite(top), indices, -1).astype(jnp.int32)
