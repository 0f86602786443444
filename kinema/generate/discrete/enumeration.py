"""Short sequences, exactly: all states, their marginals, and the law that an any-order model samples from."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kinema.errors import InputError
from kinema.generate.discrete.marginalization import MarginalModel
from kinema.generate.discrete.orders import known_first

MOST = 2**20  # states


def all_states(length: int, categories: int) -> Int[np.ndarray, "states length"]:
    """Every state; the last variable changes fastest.

    >>> all_states(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]

    Raises:
        InputError: more than a million states.
    """
    if categories**length > MOST:
        raise InputError(f"{categories}^{length} states are too many to list, at most {MOST}")
    return np.asarray(list(itertools.product(range(categories), repeat=length)), np.int32)


def log_marginal_of_table(
    log_f: Float[Array, " states"],
    states: Int[Array, "states length"],
    x: Int[Array, " length"],
    mask: Bool[Array, " length"],
) -> Float[Array, ""]:
    """log of the mass of all states that agree with x where the mask is True."""
    agree = jnp.where(mask, states == x, True).all(1)
    return jax.nn.logsumexp(jnp.where(agree, log_f, -jnp.inf))


@eqx.filter_jit
def order_table(model: MarginalModel, order: Int[Array, " length"]) -> Float[Array, " states"]:
    """log p of every state, in the order of `all_states`, by c along one order of the variables.

    Raises:
        InputError: more than a million states.
    """
    length, categories = model.length, model.categories
    if categories**length > MOST:
        raise InputError(f"{categories}^{length} states are too many to list, at most {MOST}")
    prefixes = [all_states(count, categories) for count in range(length)]
    rows = np.concatenate([np.pad(one, ((0, 0), (0, length - one.shape[1]))) for one in prefixes])
    counts = np.repeat(np.arange(length), [len(one) for one in prefixes])
    place = jnp.argsort(order)

    def next_law(row):
        values, count = row
        return model.conditionals(values[place], known_first(order, count))[order[count]]

    log_c = jax.lax.map(next_law, (jnp.asarray(rows), jnp.asarray(counts)), batch_size=4096)
    log_p, start = jnp.zeros(1), 0
    for one in prefixes:
        log_p = (log_p[:, None] + log_c[start : start + len(one)]).reshape(-1)
        start += len(one)
    # log_p runs over values in the order of revealing
    digits = jnp.asarray(all_states(length, categories))[:, order]
    return log_p[digits @ (categories ** np.arange(length - 1, -1, -1))]
