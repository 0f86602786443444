"""The trained part of `masked_diffusion`: digits in four grey levels, drawn in few calls and in many."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from kinema import learn
from kinema.errors import require
from kinema.generate.discrete.first_hitting import sample_masked
from kinema.generate.discrete.marginalization import spread_counts
from kinema.generate.discrete.masking import MaskedModel, masked_nelbo
from kinema.generate.discrete.truncation import unigram_entropy
from kinema.generate.discrete.trunks import Perceptron
from kinema.verify.distances import energy_distance

PIXELS, LEVELS, TRAINED, RATE, REPEATS = 64, 4, 1500, 2e-3, 8
CLOCK = 5  # numbers that say the time


class Digits(NamedTuple):
    """Energy distance of drawn digits to held-out ones, an axis of pixels from 0 to 1, and entropy of the levels within
    a digit, by calls, first hitting last; both of training digits; bound of -log p of held-out digits, nats, of a
    network without time and of one with it; ten digits drawn in each number of calls; and the road of those by first
    hitting, pixel by pixel."""

    apart: list[float]
    variety: list[float]
    real_apart: float
    real_variety: float
    bound: float
    timed_bound: float
    drawn: np.ndarray
    road: np.ndarray


def on_digits(network: tuple[int, int], steps: int, count: int, calls: tuple[int, ...], seed: int) -> Digits:
    (train, test), (width, depth) = grey_digits(), network
    key_net, key_fit, key_bound, key_draw = jr.split(jr.key(seed), 4)
    net = Perceptron(PIXELS * (LEVELS + 1) + CLOCK, PIXELS * LEVELS, width, depth, key=key_net)
    start = MaskedModel(Clocked(net, jnp.zeros(())), PIXELS, LEVELS)
    settings = {"optimizer": learn.adam(RATE, steps), "steps": steps, "batch_size": 128, "key": key_fit}
    model, timed = (learn.fit(start, clocked_loss, rows(train, told), **settings).ema for told in (False, True))
    held_out = np.repeat(test, REPEATS, 0)
    found = [sample_masked(model, count, key=jr.fold_in(key_draw, n), method="parallel", steps=n) for n in calls]
    found.append(sample_masked(model, count, key=key_draw, save="all"))
    drawn = [np.asarray(one.x) for one in found]
    return Digits(
        [distance(x, test) for x in drawn],
        [unigram_entropy(x) for x in drawn],
        distance(train[:count], test),
        unigram_entropy(test),
        float(judged(model, rows(held_out, False), key_bound)),
        float(judged(timed, rows(held_out, True), key_bound)),
        np.stack([x[:10] for x in drawn]),
        np.asarray(found[-1].path and found[-1].path["x"][:10]),
    )


def grey_digits() -> tuple[Int[np.ndarray, "n pixels"], Int[np.ndarray, "m pixels"]]:
    """scikit-learn's digits in four grey levels, 0 .. 3, in a fixed random order: to train on, and held out."""
    values = require("sklearn.datasets", "digits").load_digits().data
    values = np.minimum(values // 4, 3).astype(np.int32)[np.random.default_rng(0).permutation(len(values))]
    return values[:TRAINED], values[TRAINED:]


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(energy_distance(jnp.asarray(x / (LEVELS - 1)), jnp.asarray(y / (LEVELS - 1))))


class Clocked(eqx.Module):
    """A perceptron that is told the time; t stays 0 where it is not."""

    net: Perceptron
    t: Float[Array, ""]

    def __call__(self, x: Int[Array, " pixels"]) -> Float[Array, "pixels levels"]:
        angle = math.pi * self.t * jnp.array([1.0, 2.0])
        clock = jnp.concatenate([self.t[None], jnp.sin(angle), jnp.cos(angle)])
        seen = jax.nn.one_hot(x, LEVELS + 1).reshape(-1)
        return self.net(jnp.concatenate([seen, clock])).reshape(PIXELS, LEVELS)


def rows(x: np.ndarray, told: bool) -> dict[str, np.ndarray]:
    """Digits, and for each whether the network is told the time."""
    return {"x": x, "told": np.full(len(x), told)}


def clocked_loss(model: MaskedModel, batch: dict[str, Any], key) -> tuple[Float[Array, ""], dict]:
    """`masked_loss` with the time at which so many pixels are known: the next one of `PIXELS` + 1 uniform times."""
    x, told = batch["x"], batch["told"]
    key_count, key_mask, key_time = jr.split(key, 3)
    counts = spread_counts(len(x), PIXELS, key=key_count)
    times = jnp.sort(jr.uniform(key_time, (len(x), PIXELS + 1)))
    times = jnp.where(told, jnp.take_along_axis(times, counts[:, None], 1)[:, 0], 0.0)

    def loss(x, key, count, t):
        return masked_nelbo(eqx.tree_at(lambda model: model.trunk.t, model, t), x, key, at=count)

    return jax.vmap(loss)(x, jr.split(key_mask, len(x)), counts, times).mean(), {}


@eqx.filter_jit
def judged(model: MaskedModel, batch: dict[str, Any], key) -> Float[Array, ""]:
    return clocked_loss(model, batch, key)[0]
