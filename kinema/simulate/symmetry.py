"""Symmetries of a stationary gas of balls: motions that are exactly as likely as the one given."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

States = dict[str, Float[Array, "frames n 2"]]


def gas_symmetry(key: PRNGKeyArray, states: States, size: Float[Array, "2"], *, square: bool, alike: bool) -> States:
    """Reflect each axis, swap the axes of a `square` box, permute balls that are `alike`, reverse time: each by chance.

    Holds for walls, elastic hits and no gravity, where the law of one instant is the same at every frame.
    """
    key_flip, key_swap, key_order, key_time = jr.split(key, 4)
    x, v = states["x"], states["v"]
    flip = jr.bernoulli(key_flip, shape=(2,))
    x, v = jnp.where(flip, size - x, x), jnp.where(flip, -v, v)
    if square:
        swap = jr.bernoulli(key_swap)
        x, v = (jnp.where(swap, leaf[..., ::-1], leaf) for leaf in (x, v))
    if alike:
        order = jr.permutation(key_order, x.shape[1])
        x, v = x[:, order], v[:, order]
    reverse = jr.bernoulli(key_time)
    return {"x": jnp.where(reverse, x[::-1], x), "v": jnp.where(reverse, -v[::-1], v)}
