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
TRAINED = 1437  # of 1,797 digits; the rest are for the test


class Problem(NamedTuple):
    """Clients with one class each, all their digits together, and those that judge."""

    clients: Clients
    train: tuple
    test: tuple


class Curves(NamedTuple):
    """Every round of a run: loss on all training digits, by which settings are chosen, and accuracy on the others."""

    loss: np.ndarray
    accuracy: np.ndarray


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
    controls, some: int, rounds: int, settings: np.ndarray, pilots, seeds, repeats: int, task: Problem
) -> dict[str, tuple[np.ndarray, Curves]]:
    """By rule: the setting of least loss in the pilots' last rounds, and its curves (seeds, repeats, rounds).

    `controls`: rules with control variates (True), without (False), or both.

    All runs of rules of one kind go through one program, in batches as large as the pilots of one rule.
    """
    keys = keys_of(pilots)
    final = jnp.concatenate([jr.split(key, repeats) for key in keys_of(seeds)])
    found = {}
    for control in controls:
        names = [name for name, (_, controlled) in RULES.items() if controlled == control]
        pilot = [Run(RULES[name][0], rates, key) for name in names for rates in settings for key in keys]
        batch = len(settings) * len(keys)
        seen = curves(control, some, rounds, pilot, batch, task)
        loss = np.nan_to_num(seen.loss[:, -LAST:], nan=np.inf).reshape(len(names), len(settings), -1).mean(-1)
        best = settings[loss.argmin(1)]
        judged = [Run(RULES[name][0], rates, key) for name, rates in zip(names, best) for key in final]
        seen = curves(control, some, rounds, judged, batch, task)
        shape = len(names), len(seeds), repeats, rounds
        each = zip(names, best, seen.loss.reshape(shape), seen.accuracy.reshape(shape))
        found |= {name: (rates, Curves(loss, accuracy)) for name, rates, loss, accuracy in each}
    return found


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

    def measure(server):
        model = jax.vmap(eqx.combine(server.model, static))
        right = model(task.test[0]).argmax(1) == task.test[1]
        return {"all": _entropy(model(task.train[0]), task.train[1]), "right": right.mean()}

    def run(beta, rates, key):
        key_model, key_run, key_members = jr.split(key, 3)
        params, _ = eqx.partition(network(key_model), eqx.is_inexact_array)
        federated = Federated(make(beta), SOURCE, 10, LOCAL_STEPS, rates[0], rates[1], BATCH, static)
        server, members = federated.begin(params)
        state = Population(server, members, jnp.zeros((), jnp.int32))
        keys = member_keys(key_members, 10)
        options = {"rule": federated, "rounds": rounds, "some": some, "measure": measure}
        seen = scan_rounds(state, task.clients, keys, key_run, **options)[1]
        return seen["all"], seen["right"]

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
