"""Samplers of masked diffusion: when variables become known is drawn first, then their values, round by round.

In the reverse process a masked variable becomes known at a rate that knows nothing of values, so all times can be drawn
beforehand, and a sampler is a plan: the round in which each variable becomes known. A round is one call of the network,
from which the values of its variables are drawn.

    first_hitting   one variable a round, by its time: the process itself, in `length` calls
    parallel        groups of equal size, up to one, by time: `steps` calls
    ancestral       all whose time lies in the same of `steps` equal steps of t: `steps` calls
    cached          the same law; steps in which nothing happens are left out: never more than `length` calls

Values within a round are drawn as if independent, which is the whole error of all but the first. No draw has "stays
masked" among its classes, which in float32 would lower the temperature (`truncation.one_stage_law`).

Reference: Zheng et al. 2024, arXiv 2409.02908.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kinema.errors import InputError, unknown
from kinema.generate.discrete.categorical import categorical, tempered
from kinema.generate.discrete.masking import MaskedModel, MaskedPath
from kinema.generate.discrete.orders import check_sample
from kinema.generate.sampling import Samples, check_leading

METHODS = ("first_hitting", "parallel", "ancestral", "cached")


def sample_masked(
    model: MaskedModel,
    n: int,
    *,
    key: PRNGKeyArray,
    method: str = "first_hitting",
    steps: int | None = None,
    path: MaskedPath | None = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    given: Int[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    save: str = "last",
    batch_size: int | None = None,
) -> Samples:
    """Draw n sequences; the part of `given` where `mask` is True is known from the start and kept.

    `steps` is for all methods but the first. Sample i depends on `key` and i alone, never on n or `batch_size` (how
    many are carried at once; all by default). `nfe` counts the calls of the network that the slowest sample took: known
    variables save calls, and so does `cached`. With `save="all"`, `path` holds `x` `(n, rounds, length)`, the sequences
    after every round with masked variables as the category `categories`, and `t` `(n, length)`, when each became known.

    >>> from kinema.generate.discrete.masked_networks import masked_mlp
    >>> samples = sample_masked(masked_mlp(6, 3, width=8, depth=1, key=jr.key(0)), 10, key=jr.key(1))
    >>> samples.x.shape, samples.nfe
    ((10, 6), 6)

    Raises:
        InputError: n < 1; an unknown method or save; steps missing, not positive, more than the length for parallel,
            or given to first_hitting; a bad temperature or top_p; one of `given` and `mask` without the other, or not
            sequences of the model with a leading axis of n.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if save not in ("last", "all"):
        raise InputError(f"save must be 'last' or 'all', got {save!r}")
    rounds = _check_steps(method, steps, model.length)
    tempered(jnp.zeros(1), temperature, top_p)
    if (given is None) != (mask is None):
        raise InputError(f"given and mask go together, got only {'mask' if given is None else 'given'}")
    for name, rows in (("given", given), ("mask", mask)):
        check_leading(name, rows, n)
    if given is None or mask is None:
        given, mask = jnp.zeros((n, model.length), int), jnp.zeros((n, model.length), bool)
    else:
        check_sample(given[0], mask[0], model.length, model.categories)
        check_sample(given.ravel(), mask.ravel(), n * model.length, model.categories)
    path = MaskedPath() if path is None else path
    settings = (method, rounds, temperature, top_p, save == "all", batch_size)
    x, calls, road = _sample(model, path, key, given, mask, settings)
    calls = max(int(calls), 0)  # less where all is known
    return Samples(x, calls, calls, road)


def reveal_rounds(
    times: Float[Array, " length"], mask: Bool[Array, " length"], method: str, rounds: int
) -> tuple[Int[Array, " length"], Int[Array, " length"]]:
    """The variables in the order of their times, known ones first, and the round 0 .. rounds - 1 of each variable.

    The round of a known variable means nothing.

    >>> times, mask = jnp.array([0.9, 0.1, 0.8, 0.6]), jnp.zeros(4, bool)
    >>> [reveal_rounds(times, mask, how, 10 if how == "ancestral" else 2)[1].tolist() for how in METHODS[1:3]]
    [[1, 0, 1, 0], [9, 1, 8, 6]]
    """
    length = len(times)
    order = jnp.argsort(jnp.where(mask, -1.0, times))

    def by_variable(in_order):
        return jnp.zeros_like(in_order).at[order].set(in_order)

    if method in ("first_hitting", "parallel"):
        return order, by_variable(jnp.arange(length) * rounds // length)
    step = jnp.clip((times * rounds).astype(int), 0, rounds - 1)
    if method == "ancestral":
        return order, step
    ahead = jnp.append(-1, jnp.where(mask, -1, step)[order][:-1])
    fresh = ~mask[order] & (step[order] != ahead)
    return order, by_variable(jnp.cumsum(fresh) - 1)


@eqx.filter_jit
def _sample(model: MaskedModel, path: MaskedPath, key, given, mask, settings):
    method, rounds, temperature, top_p, save, batch_size = settings
    n, length = given.shape
    by_order = method in ("first_hitting", "parallel")
    width = -(-length // rounds) if by_order else length
    bound = min(rounds, length) if method == "cached" else rounds

    def plan(i, mask):
        key_times, key_draw = jr.split(jr.fold_in(key, i))
        times = path.hitting_times(length, key=key_times)
        return key_draw, jnp.where(mask, 0.0, times), *reveal_rounds(times, mask, method, rounds)

    keys, times, order, round_of = jax.vmap(plan)(jnp.arange(n), mask)
    first, last = 0, bound
    if method != "ancestral":
        first = jnp.where(mask, bound, round_of).min()
        last = jnp.where(mask, -1, round_of).max() + 1

    def one(arguments):
        key, x, known, order, round_of = arguments
        to_draw = ~known

        def reveal(r, carry):
            x, known, road = carry
            at = order
            if width < length:
                # near the end the slice moves back, to variables of earlier rounds
                at = jax.lax.dynamic_slice(order, (-(-r * length // rounds),), (width,))
            log_p = tempered(model.conditionals(x, known, at), temperature, top_p)
            drawn = categorical(jr.fold_in(key, r), log_p).astype(x.dtype)
            now = (round_of[at] == r) & to_draw[at]
            x = x.at[at].set(jnp.where(now, drawn, x[at]))
            known = known.at[at].set(known[at] | now)
            if save:
                road = road.at[r].set(jnp.where(known, x, model.categories))
            return x, known, road

        road = jnp.tile(jnp.where(known, x, model.categories), (bound, 1)) if save else None
        x, _, road = jax.lax.fori_loop(first, last, reveal, (x, known, road))
        return x, jnp.where((jnp.arange(bound) >= last)[:, None], x, road) if save else None

    rows = (keys, given, mask, order, round_of)
    x, road = jax.vmap(one)(rows) if batch_size is None else jax.lax.map(one, rows, batch_size=batch_size)
    return x, last - first, {"x": road, "t": times} if save else None


def _check_steps(method: str, steps: int | None, length: int) -> int:
    """The number of rounds."""
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    if method == "first_hitting":
        if steps is not None:
            raise InputError(f"first_hitting takes as many steps as variables, {length}; use 'parallel' for {steps}")
        return length
    if steps is None or steps < 1:
        raise InputError(f"{method} needs steps, at least 1, got {steps}")
    if method == "parallel" and steps > length:
        raise InputError(f"parallel has at most a step a variable, {length}, got steps={steps}")
    return steps
