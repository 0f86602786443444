"""Helpers of the tests of networks: small, quick to compile."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def normals(shape, seed=0):
    """Standard normals without a program to compile."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.zeros(()).dtype)


def trained(net, seed=0):
    """`net` with noise on every weight, as after some training: nothing is zero any more."""
    random = np.random.default_rng(seed)
    weights, rest = eqx.partition(net, eqx.is_inexact_array)
    noisy = jax.tree.map(lambda w: jnp.asarray(np.asarray(w) + 0.3 * random.standard_normal(w.shape), w.dtype), weights)
    return eqx.combine(noisy, rest)


@eqx.filter_jit
def apply(net, x, signal=0.5, cond=None):
    """One sample, compiled."""
    return net(x, signal, cond)


@eqx.filter_jit
def apply_all(net, xs, signals, conds=None):
    """Rows, compiled."""
    return jax.vmap(net)(xs, signals, conds)
