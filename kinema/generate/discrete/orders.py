"""Orders and masks of a sequence of discrete variables: which are known, and which becomes known next.

One sample is x `(length,)`, whole numbers 0 .. categories - 1, with a mask `(length,)`, True where x is known; what x
holds elsewhere is never looked at. An order is a permutation of the positions, revealed from its first to its last.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kinema.errors import InputError


def random_order(mask: Bool[Array, " length"], *, key: PRNGKeyArray) -> Int[Array, " length"]:
    """All positions, those of the mask before the others, both in random order.

    >>> random_order(jnp.array([False, False, True]), key=jr.key(0))[0].item()
    2
    """
    return jnp.argsort(jr.uniform(key, mask.shape) + jnp.where(mask, 0.0, 1.0))


def known_first(order: Int[Array, " length"], count: Int[Array, ""] | int) -> Bool[Array, " length"]:
    """The mask after the first `count` positions of the order were revealed.

    >>> known_first(jnp.array([2, 0, 1]), 1).tolist()
    [False, False, True]
    """
    return jnp.argsort(order) < count


def symbols(x: Int[Array, " length"], mask: Bool[Array, " length"], categories: int) -> Float[Array, "length symbols"]:
    """One row for each position: the indicator of its category, or of the extra last symbol where it is not known.

    >>> symbols(jnp.array([1, 1]), jnp.array([True, False]), 2).tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return jax.nn.one_hot(jnp.where(mask, x, categories), categories + 1)


def check_sample(x: Array, mask: Array, length: int, categories: int) -> None:
    """x and mask are one sample; values are checked where both are concrete, at known positions.

    Raises:
        InputError: another shape or type, or a category out of range.
    """
    if x.shape != (length,) or not jnp.issubdtype(x.dtype, jnp.integer):
        raise InputError(
            f"x must be whole numbers of shape ({length},), got {x.dtype} of shape {x.shape}; use jax.vmap for a batch"
        )
    if mask.shape != (length,) or mask.dtype != bool:
        raise InputError(f"mask must be bool of shape ({length},), got {mask.dtype} of shape {mask.shape}")
    if isinstance(x, Tracer) or isinstance(mask, Tracer):
        return
    known = np.asarray(x)[np.asarray(mask)]
    bad = known[(known < 0) | (known >= categories)]
    if len(bad):
        raise InputError(f"known variables must be in 0..{categories - 1}, got {bad[0]}")
