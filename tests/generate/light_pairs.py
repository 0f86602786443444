"""Samples of both ends of a known light bridge."""

import equinox as eqx
import jax
import jax.random as jr


def pairs(model, n, key):
    """x from a standard normal law and y from the plan given x."""
    key_x, key_y = jr.split(key)
    x = jr.normal(key_x, (n, model.dim))
    return x, ends_from(model, x, jr.split(key_y, n))


@eqx.filter_jit
def ends_from(model, x, keys):
    return jax.vmap(lambda one, key: model.sample(one, key=key))(x, keys)
