"""Digits at ten clients that hold one class each: settings tuned on other seeds, all at once on the population axis."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.errors import require
from kinema.learn import BackPropagation
from kinema.learn.federated import Clients, Federated, by_key, divide, fedavg_m, scaffold_m
from kinema.learn.population import Population, member_keys, scan_rounds

BETA = 0.1
# (beta, control variates): 1 leaves momentum out, to the same bits
RULES = {"fedavg": (1.0, False), "fedavg-m": (BETA, False), "scaffold": (1.0, True), "scaffold-m": (BETA, True)}
LOCAL_RATES = (0.05, 0.2, 0.5)
SERVER_STEPS = (0.5, 1.0, 2.0)  # of local_lr * local_steps
LOCAL_STEPS, BATCH, LAST = 16, 20, 10
FIRST, FINALISTS = 4, 3  # pilots of every setting, and how many settings have the other pilots too
TRAINED = 1437  # of 1,797 digits; the rest are for the test


class Problem(NamedTuple):
    """Clients with one class each, all their digits together, and those that judge."""

    clients: Clients
    train: tuple
    test: tuple


class Curves(NamedTuple):
    """Of runs: loss on all training digits in the last rounds, by which settings are chosen; accuracy on the others."""

    loss: np.ndarray
    accuracy: np.ndarray  # in every round


class Tuned(NamedTuple):
    """The chosen (local, server) rate, its curves (seeds, repeats, rounds), and the ends of (settings, pilots).

    An end is NaN where a setting had no more pilots.
    """

    rates: np.ndarray
    curves: Curves
    pilots: Curves


def problem() -> Problem:
    digits = require("sklearn.datasets", "digits").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.data / 16).astype(np.float32)[order], digits.target[order].astype(np.int32)
    clients = divide({"x": x[:TRAINED], "y": y[:TRAINED]}, by_key(y[:TRAINED]))
    x, y = jnp.asarray(x), jnp.asarray(y)
    return Problem(clients, (x[:TRAINED], y[:TRAINED]), (x[TRAINED:], y[TRAINED:]))


def grid(local_rates: tuple[float, ...] = LOCAL_RATES) -> np.ndarray:
    """(settings, 2): local and server rate."""
    return np.array([(a, b * a * LOCAL_STEPS) for a in local_rates for b in SERVER_STEPS], np.float32)


def tuned(
    control: bool, some: int, rounds: int, settings: np.ndarray, pilots, seeds, repeats: int, task: Problem
) -> dict[str, Tuned]:
    """Every rule with control variates, or without, at the setting of least loss in the pilots' last rounds.

    Loss differs much from run to run, so many pilots compare the settings that are best by a few. All runs go through
    one program.
    """
    names = [name for name, (_, controlled) in RULES.items() if controlled == control]
    first, more = np.split(np.asarray(pilots), [FIRST])
    final = jnp.concatenate([jr.split(key, repeats) for key in keys_of(seeds)])
    batch = len(names) * len(final)

    def ran(chosen, keys):
        """Curves (rules, settings, keys, rounds) of some settings of every rule."""
        own = [Run(RULES[name][0], rates, key) for name, each in zip(names, chosen) for rates in each for key in keys]
        seen = curves(control, some, rounds, own, batch, task)
        return [one.reshape(len(names), len(chosen[0]), len(keys), -1) for one in seen]

    ends = np.full((2, len(names), len(settings), len(pilots)), np.nan)
    ends[..., : len(first)] = [finite(one) for one in ran([settings] * len(names), keys_of(first))]
    best = np.nanmean(ends[0], -1).argsort(1)[:, :FINALISTS]
    if len(more):
        rules = np.arange(len(names))[:, None]
        ends[:, rules, best, len(first) :] = [finite(one) for one in ran(settings[best], keys_of(more))]
    losses = np.take_along_axis(ends[0].mean(-1), best, 1)
    chosen = np.take_along_axis(best, losses.argmin(1)[:, None], 1)
    seen = [one.reshape(len(names), len(seeds), repeats, -1) for one in ran(settings[chosen], final)]
    each = zip(names, chosen[:, 0], zip(*seen), zip(*ends))
    return {name: Tuned(settings[index], Curves(*run), Curves(*pilot)) for name, index, run, pilot in each}


def finite(values: np.ndarray) -> np.ndarray:
    """Means over the last rounds, infinite where a run was lost."""
    return np.nan_to_num(last(values), nan=np.inf)


def last(values: np.ndarray) -> np.ndarray:
    """Mean over the last rounds."""
    return np.asarray(values[..., -LAST:], np.float64).mean(-1)


class Run(NamedTuple):
    """Momentum, (local, server) rate and key."""

    beta: float
    rates: np.ndarray
    key: jax.Array


def keys_of(seeds) -> jax.Array:
    return jax.vmap(jr.key)(jnp.asarray(seeds))


def curves(control: bool, some: int, rounds: int, runs: list[Run], batch: int, task: Problem) -> Curves:
    """Curves (runs, rounds), computed in batches of one size."""
    parts = []
    for start in range(0, len(runs), batch):
        part = runs[start : start + batch]
        part += part[-1:] * (batch - len(part))
        beta, rates = jnp.array([one.beta for one in part]), jnp.array([one.rates for one in part])
        parts.append(_curves(control, some, rounds, beta, rates, jnp.stack([one.key for one in part]), task))
    return Curves(*(np.concatenate([np.asarray(one) for one in column])[: len(runs)] for column in zip(*parts)))


@eqx.filter_jit
def _curves(control: bool, some: int, rounds: int, beta, rates, keys, task: Problem):
    make = scaffold_m if control else fedavg_m
    static = eqx.partition(network(jr.key(0)), eqx.is_inexact_array)[1]

    def right(server):
        model = jax.vmap(eqx.combine(server.model, static))
        return {"right": (model(task.test[0]).argmax(1) == task.test[1]).mean()}

    def both(server):
        model = jax.vmap(eqx.combine(server.model, static))
        return right(server) | {"all": _entropy(model(task.train[0]), task.train[1])}

    def run(beta, rates, key):
        key_model, key_run, key_members = jr.split(key, 3)
        params, _ = eqx.partition(network(key_model), eqx.is_inexact_array)
        federated = Federated(make(beta), SOURCE, 10, LOCAL_STEPS, rates[0], rates[1], BATCH, static)
        server, members = federated.begin(params)
        state = Population(server, members, jnp.zeros((), jnp.int32))
        data = task.clients, member_keys(key_members, 10), key_run
        options = {"rule": federated, "some": some}
        state, early = scan_rounds(state, *data, **options, rounds=rounds - LAST, measure=right)
        _, late = scan_rounds(state, *data, **options, rounds=LAST, measure=both)
        return late["all"], jnp.concatenate([early["right"], late["right"]])

    return jax.vmap(run)(beta, rates, keys)


def network(key) -> eqx.nn.MLP:
    """A perceptron with weights for ReLU [He et al. 2015] and no biases at the start."""
    net = eqx.nn.MLP(64, 10, 64, 1, key=key)
    weights = [jr.normal(k, w.shape) * (2 / w.shape[1]) ** 0.5 for k, w in zip(jr.split(key), _weights(net))]
    return eqx.tree_at(_biases, eqx.tree_at(_weights, net, weights), replace_fn=jnp.zeros_like)


def entropy(model, batch, key):
    """Cross-entropy of a batch of digits."""
    return _entropy(jax.vmap(model)(batch["x"]), batch["y"]), {}


SOURCE = BackPropagation(entropy)


def _weights(net):
    return [layer.weight for layer in net.layers]


def _biases(net):
    return [layer.bias for layer in net.layers]


def _entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))
