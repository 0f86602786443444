"""Marginalization model: the probability of every subset of discrete variables in one call of a network.

Two functions of the known part x_S: m(x_S), about log p(x_S), and c_i(x_S), the law of each variable that is not known.
They belong to one law if, for every x, S and i not in S,

    m(x_S) + log c_i(x_i | x_S) = m(x_S with x_i).

The squared gap of one random such equation is an unbiased estimate of how far they are from that, at the cost of three
calls whatever the length. m is the logarithm of a mass, not of a probability: m of the empty set is the log evidence.

Reference: Liu, Ramadge & Adams, ICML 2024, arXiv 2310.12920.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kinema.errors import InputError
from kinema.generate.discrete.orders import check_sample, known_first, random_order, symbols
from kinema.models.checks import check_positive


class MarginalModel(eqx.Module):
    """m and c of a sequence of `length` variables with `categories` values each. One sample.

    `trunk` maps symbols `(length, categories + 1)` (see `discrete.symbols`) to a scalar and logits `(length,
    categories)`; the scalar is multiplied by sqrt(length), since m spans a range that grows with it. `normalized` is
    for models of data: m of the empty set is 0 by construction, as the total mass is 1.

    >>> from kinema.generate.discrete import MarginalMLP
    >>> model = MarginalModel(MarginalMLP(4, 3, width=16, depth=1, key=jr.key(0)), 4, 3)
    >>> model.conditionals(jnp.array([0, 2, 1, 1]), jnp.array([True, True, False, False])).shape
    (4, 3)

    Raises:
        InputError: length or categories not positive; x or mask of another shape or type; a category out of range.
    """

    trunk: Callable
    length: int = eqx.field(static=True)
    categories: int = eqx.field(static=True)
    normalized: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_positive(length=self.length, categories=self.categories)

    def log_marginal(self, x: Int[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
        """m(x_S), nats; log p(x_S) is m(x_S) less the log evidence."""
        check_sample(x, mask, self.length, self.categories)
        m = math.sqrt(self.length) * self.trunk(symbols(x, mask, self.categories))[0]
        return jnp.where(mask.any(), m, 0.0) if self.normalized else m

    def conditionals(self, x: Int[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "length categories"]:
        """log p(x_i = k | x_S), a row for each i; rows of known variables mean nothing."""
        check_sample(x, mask, self.length, self.categories)
        return jax.nn.log_softmax(self.trunk(symbols(x, mask, self.categories))[1])

    def log_evidence(self) -> Float[Array, ""]:
        """m of the empty set: the logarithm of the total mass."""
        return self.log_marginal(jnp.zeros(self.length, int), jnp.zeros(self.length, bool))


def any_order_loss(
    model: MarginalModel, x: Int[Array, " length"], key: PRNGKeyArray, *, count: Int[Array, ""] | int | None = None
) -> Float[Array, ""]:
    """-log p(x) by c in a random order, nats, estimated from one number of known variables; unbiased.

        L / (L - d)  sum over unknown i of  -log c_i(x_i | x_S),    |S| = d uniform in 0 .. L - 1

    `count` gives d instead.
    """
    order, known = _place(model, key, count)
    mask = known_first(order, known)
    terms = _pick(model.conditionals(x, mask), x)
    return -jnp.where(mask, 0.0, terms).sum() * model.length / (model.length - known)


def self_consistency_loss(
    model: MarginalModel,
    x: Int[Array, " length"],
    key: PRNGKeyArray,
    leaf: Float[Array, ""] | None = None,
    *,
    count: Int[Array, ""] | int | None = None,
) -> Float[Array, ""]:
    """The squared gap of one equation along x: a random order, `count` variables known (0 .. L - 1; random if None).

    `leaf` replaces m of the whole x: log f(x), where the mass of single samples is given.
    """
    order, known = _place(model, key, count)
    before, after = known_first(order, known), known_first(order, known + 1)
    log_c = _pick(model.conditionals(x, before), x)[order[known]]
    end = model.log_marginal(x, after)
    end = end if leaf is None else jnp.where(known == model.length - 1, leaf, end)
    return (model.log_marginal(x, before) + log_c - end) ** 2


def order_consistency_loss(
    model: MarginalModel, x: Int[Array, " length"], key: PRNGKeyArray, *, places: int = 8
) -> Float[Array, ""]:
    """The equations along one random order added up, from the empty set to some numbers d of known variables:

        mean over d of  (m(x_d known) - sum of the first d log c)^2 / d

    `places` of d = 1 .. L, spread evenly from a random start, each d as likely as any other: `length` calls of c and
    `places` of m. No estimate of m rests on another. For c that stands still (it gets no gradient) and a normalized
    model, whose m of the empty set is 0. Errors add up like d, hence the weight.

    Raises:
        InputError: places not positive.
    """
    check_positive(places=places)
    key_order, key_start = jr.split(key)
    order, places = _any_order(model, key_order), min(places, model.length)

    def log_c(count):
        return _pick(model.conditionals(x, known_first(order, count)), x)[order[count]]

    sums = jnp.cumsum(jax.lax.stop_gradient(jax.vmap(log_c)(jnp.arange(model.length))))
    start = jr.randint(key_start, (), 0, model.length)
    counts = (start + jnp.arange(places) * model.length // places) % model.length
    m = jax.vmap(lambda count: model.log_marginal(x, known_first(order, count + 1)))(counts)
    return ((m - sums[counts]) ** 2 / (counts + 1)).mean()


def gibbs_refresh(
    model: MarginalModel, x: Int[Array, " length"], *, block: int = 4, key: PRNGKeyArray
) -> Int[Array, " length"]:
    """x with `block` random variables forgotten and drawn anew by c, one after the other.

    Leaves the law of c unchanged if c is consistent; `block` calls.

    Raises:
        InputError: block not in 1 .. length.
    """
    if not 1 <= block <= model.length:
        raise InputError(f"block must be in 1..{model.length}, the length, got {block}")
    key_order, key_draw = jr.split(key)
    order = _any_order(model, key_order)
    start = model.length - block
    return _reveal(model, x, known_first(order, start), order[start:], key_draw)


def sample_any_order(
    model: MarginalModel,
    given: Int[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    *,
    key: PRNGKeyArray,
) -> Int[Array, " length"]:
    """One sample by c in a random order, with the known part of `given` kept: `length` calls.

    Raises:
        InputError: one of `given` and `mask` without the other, or as `MarginalModel` says.
    """
    if (given is None) != (mask is None):
        raise InputError(f"given and mask go together, got only {'mask' if given is None else 'given'}")
    if given is None or mask is None:
        given, mask = jnp.zeros(model.length, int), jnp.zeros(model.length, bool)
    check_sample(given, mask, model.length, model.categories)
    key_order, key_draw = jr.split(key)
    return _reveal(model, given, mask, random_order(mask, key=key_order), key_draw)


def log_prob_by_order(
    model: MarginalModel,
    x: Int[Array, "..."],
    mask: Bool[Array, "..."] | None = None,
    *,
    orders: int = 5,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """log p(x), nats, as an any-order autoregressive model has it from c: the mean probability over random orders.

    `length` calls an order. With a mask: log p of the known part, in orders that begin with it.

    Raises:
        InputError: orders not positive, or as `MarginalModel` says.
    """
    check_positive(orders=orders)
    mask = jnp.ones(model.length, bool) if mask is None else mask
    check_sample(x, mask, model.length, model.categories)

    def along(key):
        order = random_order(mask, key=key)

        def step(total, count):
            i = order[count]
            log_c = _pick(model.conditionals(x, known_first(order, count)), x)[i]
            return total + jnp.where(mask[i], log_c, 0.0), None

        return jax.lax.scan(step, jnp.zeros(()), jnp.arange(model.length))[0]

    return jax.nn.logsumexp(jax.vmap(along)(jr.split(key, orders))) - math.log(orders)


def spread_counts(n: int, length: int, *, key: PRNGKeyArray) -> Int[Array, " n"]:
    """Numbers of known variables for a batch: each of 0 .. length - 1 equally often, up to one."""
    first = (length * jr.uniform(key)).astype(int)
    return (first + jnp.arange(n)) % length


def _place(model: MarginalModel, key: PRNGKeyArray, count: Any) -> tuple[Int[Array, " length"], Any]:
    """A random order and, if it is not given, a random number of known variables."""
    if count is not None:
        return _any_order(model, key), count
    key_order, key_count = jr.split(key)
    return _any_order(model, key_order), jr.randint(key_count, (), 0, model.length)


def _any_order(model: MarginalModel, key: PRNGKeyArray) -> Int[Array, " length"]:
    return random_order(jnp.zeros(model.length, bool), key=key)


def _pick(rows: Float[Array, "length categories"], x: Int[Array, " length"]) -> Float[Array, " length"]:
    return jnp.take_along_axis(rows, jnp.clip(x, 0, rows.shape[1] - 1)[:, None], 1)[:, 0]


def _reveal(model: MarginalModel, x, mask, positions, key) -> Int[Array, " length"]:
    """Draw the variables at `positions`, one after the other, those already known excepted."""

    def step(carry, inputs):
        x, mask = carry
        i, key = inputs
        here = jnp.arange(model.length) == i
        drawn = jr.categorical(key, model.conditionals(x, mask)[i]).astype(x.dtype)
        return (jnp.where(here & ~mask, drawn, x), mask | here), None

    keys = jr.split(key, len(positions))
    return jax.lax.scan(step, (x, mask), (positions, keys))[0][0]
