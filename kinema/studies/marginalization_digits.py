"""Marginalization models of binary digits: one call for a marginal against one call a pixel."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from kinema import learn
from kinema.errors import require
from kinema.generate import discrete
from kinema.generate.discrete import MarginalMLP, MarginalModel
from kinema.studies.timing import least_seconds

PIXELS, TRAINED, RATE = 64, 1500, 1e-3
KNOWN = (8, 16, 32, 48, 64)  # pixels of a marginal


class Digits(NamedTuple):
    """Agreement with the mean of several orders by size of the subset, of one call and of one other order; both log
    probabilities of whole digits, nats; test NLL by one order and by several, nats; how many times faster one call is;
    and digits completed from their upper halves."""

    agreement: list[float]
    orders_agree: list[float]
    log_probs: tuple[np.ndarray, np.ndarray]
    nll: tuple[float, float]
    faster: float
    completed: np.ndarray


def binary_digits() -> tuple[Int[np.ndarray, "n pixels"], Int[np.ndarray, "m pixels"]]:
    """scikit-learn's digits, a pixel 1 where it is brighter than 7.5 of 16, in a fixed random order."""
    values = require("sklearn.datasets", "digits").load_digits().data
    values = (values > 7.5).astype(np.int32)[np.random.default_rng(0).permutation(len(values))]
    return values[:TRAINED], values[TRAINED:]


def on_digits(
    train: np.ndarray, test: np.ndarray, network: tuple[int, int], steps: int, orders: int, seed: int
) -> Digits:
    key_net, key_fit, key_mask, key_many, key_one, key_draw = jr.split(jr.key(seed), 6)
    width, depth = network
    net = MarginalMLP(PIXELS, 2, width=width, depth=depth, key=key_net)
    model = MarginalModel(net, PIXELS, 2, normalized=True)
    model = discrete.fit_marginals(model, train, optimizer=learn.adam(RATE, steps), steps=steps, key=key_fit).model
    x = jnp.asarray(test)
    agreement, orders_agree = [], []
    for count in KNOWN:
        keys = jr.split(jr.fold_in(key_mask, count), len(x))
        masks = jax.vmap(lambda key, count=count: discrete.known_first(jr.permutation(key, PIXELS), count))(keys)
        m, one = one_call(model, x, masks), by_order(model, x, masks, key_one)
        each = [by_order(model, x, masks, key) for key in jr.split(key_many, orders)]
        many = np.logaddexp.reduce(each) - np.log(orders)
        agreement.append(correlation(m, many))
        orders_agree.append(correlation(one, many))
    slow = least_seconds(lambda: by_order(model, x, masks, key_one), 3)
    fast = least_seconds(lambda: one_call(model, x, masks), 20)
    return Digits(
        agreement,
        orders_agree,
        (np.asarray(m), np.asarray(many)),
        (-float(one.mean()), -float(many.mean())),
        slow / fast,
        np.asarray(complete(model, x[:10], key_draw)),
    )


@eqx.filter_jit
def one_call(model: MarginalModel, x, masks) -> Float[Array, " n"]:
    return jax.vmap(model.log_marginal)(x, masks) - model.log_evidence()


@eqx.filter_jit
def by_order(model: MarginalModel, x, masks, key) -> Float[Array, " n"]:
    """log p of the known part of each row by c, in one random order."""

    def one(x, mask, key):
        return discrete.log_prob_by_order(model, x, mask, orders=1, key=key)

    return jax.vmap(one)(x, masks, jr.split(key, len(x)))


@eqx.filter_jit
def complete(model: MarginalModel, x, key) -> Int[Array, "n draws pixels"]:
    """Four digits for the upper half of each."""
    upper = jnp.arange(PIXELS) < PIXELS // 2

    def draw(x, key):
        return discrete.sample_any_order(model, x, upper, key=key)

    return jax.vmap(lambda x, key: jax.vmap(draw, (None, 0))(x, jr.split(key, 4)))(x, jr.split(key, len(x)))


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])
