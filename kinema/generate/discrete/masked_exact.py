"""Masked diffusion of a known joint law: its exact network, and the law that a sampler comes to, by enumeration.

A sampler that reveals in rounds draws x with probability prod_i p(x_i | variables of earlier rounds), averaged over its
plans. With N ancestral steps a plan with m different rounds has probability C(N, m) / N^L.
"""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from kinema.errors import InputError
from kinema.generate.discrete.enumeration import all_states
from kinema.generate.discrete.masking import MaskedModel

MOST = 6  # variables: 4,683 plans


def table_model(joint: Real[Array | np.ndarray, "..."]) -> MaskedModel:
    """The exact conditionals of a joint law, an axis for each variable.

    Given what has probability 0 they are uniform.

    >>> model = table_model(np.array([[0.5, 0.0], [0.0, 0.5]]))
    >>> jnp.exp(model.conditionals(jnp.array([1, 0]), jnp.array([True, False])))[1].round(3).tolist()
    [0.0, 1.0]

    Raises:
        InputError: axes of different lengths, a negative number, or all zero.
    """
    mass = np.asarray(joint, np.float64)
    if mass.ndim < 1 or len(set(mass.shape)) != 1 or (mass < 0).any() or not mass.sum() > 0:
        raise InputError(f"joint must have axes of one length and no negative number, got shape {mass.shape}")
    length, categories = mass.ndim, mass.shape[0]
    for axis in range(length):
        mass = np.append(mass, mass.sum(axis, keepdims=True), axis)
    return MaskedModel(_Table(jnp.asarray(mass / mass.flat[-1], jnp.result_type(float))), length, categories)


def plans(length: int) -> Int[np.ndarray, "plans length"]:
    """Every way to reveal variables in rounds, each round 0 .. m - 1 with one at least.

    >>> plans(2).tolist()
    [[0, 0], [0, 1], [1, 0]]

    Raises:
        InputError: more than 6 variables.
    """
    if not 1 <= length <= MOST:
        raise InputError(f"length must be in 1..{MOST}, got {length}")
    every = itertools.product(range(length), repeat=length)
    return np.array([one for one in every if set(one) == set(range(max(one) + 1))])


def ancestral_law(model: MaskedModel, steps: int) -> Float[np.ndarray, " states"]:
    """p of every state, in the order of `all_states`, after ancestral sampling, cached or not.

    Raises:
        InputError: more than 6 variables, steps not positive.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    every = plans(model.length)
    return law_of_plans(model) @ [math.comb(steps, m) / steps**model.length for m in every.max(1) + 1]


def parallel_law(model: MaskedModel, steps: int) -> Float[np.ndarray, " states"]:
    """p of every state after parallel sampling; with as many steps as variables, after first hitting.

    Raises:
        InputError: more than 6 variables, steps not in 1 .. length.
    """
    if not 1 <= steps <= model.length:
        raise InputError(f"steps must be in 1..{model.length}, got {steps}")
    sizes = np.sort(np.arange(model.length) * steps // model.length)
    chosen = (np.sort(plans(model.length), 1) == sizes).all(1)
    return law_of_plans(model) @ (chosen / chosen.sum())


def law_of_plans(model: MaskedModel) -> Float[np.ndarray, "states plans"]:
    """p of every state after sampling by each of `plans`.

    Raises:
        InputError: more than 6 variables.
    """
    every = jnp.asarray(plans(model.length))
    return np.asarray(_law_of_plans(model, every, jnp.asarray(all_states(model.length, model.categories))), np.float64)


@eqx.filter_jit
def _law_of_plans(model: MaskedModel, every, states):
    def one(round_of):
        def log_p(x):
            def in_round(r):
                rows = jnp.take_along_axis(model.conditionals(x, round_of < r), x[:, None], 1)[:, 0]
                return jnp.where(round_of == r, rows, 0.0).sum()

            return jax.vmap(in_round)(jnp.arange(model.length)).sum()

        return jnp.exp(jax.vmap(log_p)(states))

    return jax.lax.map(one, every).T


class _Table(eqx.Module):
    mass: Float[Array, "..."]  # of every partly known state; the last index of an axis is "masked"

    def __call__(self, x: Int[Array, " length"]) -> Float[Array, "length categories"]:
        length, symbols = len(x), self.mass.shape[0]
        strides = jnp.asarray(symbols ** np.arange(length - 1, -1, -1))
        # where the table holds x with variable i replaced by k
        place = x @ strides + strides[:, None] * (jnp.arange(symbols - 1) - x[:, None])
        return jnp.log(jnp.maximum(self.mass.ravel()[place], jnp.finfo(self.mass.dtype).tiny))
