"""Four small tasks, the optimizers that are compared on them, and one program that trains all settings of one of them.

A task has a pool to train and validate on, and a test set that no seed and no choice of settings ever sees: digits and
patients in a fixed random order, the Lorenz system's later times. A seed draws the validation fifth of the pool, the
network and the batches.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from scipy.integrate import solve_ivp

from kinema.errors import require
from kinema.generate import VP, Denoising, Generator
from kinema.learn.optim import Huber, adamp, adan, lion_k, sgdp
from kinema.studies.score_sde_digits import SPREAD, digits

BATCH = 64
VALIDATION = 0.2  # of the pool
INTERVAL, TIMES, TESTED = 0.05, 2000, 500  # of the Lorenz system: time units a step, steps, the last of them for tests


def _matrices(params: PyTree) -> PyTree:
    """What decays under every optimizer."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _momentum(rate, decay) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay, _matrices), optax.sgd(rate, 0.9))


class Optimizer(NamedTuple):
    """`build(rate, decay)`, and the rate and decay that its documentation says to start from."""

    build: Callable[..., optax.GradientTransformation]
    rate: float
    decay: float


OPTIMIZERS = {
    "AdamW": Optimizer(lambda rate, decay: optax.adamw(rate, weight_decay=decay, mask=_matrices), 1e-3, 1e-2),
    "momentum": Optimizer(_momentum, 0.1, 1e-4),
    "Lion": Optimizer(lambda rate, decay: optax.lion(rate, weight_decay=decay, mask=_matrices), 2e-4, 5e-2),
    "Muon": Optimizer(
        lambda rate, decay: optax.contrib.muon(rate, weight_decay=decay, weight_decay_mask=_matrices), 0.02, 1e-2
    ),
    "AdamP": Optimizer(lambda rate, decay: adamp(rate, weight_decay=decay, mask=_matrices), 1e-3, 1e-2),
    "SGDP": Optimizer(lambda rate, decay: sgdp(rate, weight_decay=decay, mask=_matrices), 0.1, 1e-4),
    "Adan": Optimizer(lambda rate, decay: adan(rate, 0.9, weight_decay=decay, mask=_matrices), 5e-3, 0.02),
    "Lion-K, Huber": Optimizer(
        lambda rate, decay: lion_k(rate, Huber(), weight_decay=decay, mask=_matrices), 2e-4, 5e-2
    ),
}
OURS = ("AdamP", "SGDP", "Adan", "Lion-K, Huber")


class Data(NamedTuple):
    """Rows to train and validate on, and rows to judge by: inputs and, but for the denoiser, targets."""

    pool: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]


class Task(NamedTuple):
    """`data()`, `start(width, key)` a model, and `loss(model, rows, key)`, a mean over rows."""

    data: Callable[[], Data]
    start: Callable[[int, PRNGKeyArray], PyTree]
    loss: Callable[[PyTree, tuple[Array, ...], PRNGKeyArray], Float[Array, ""]]


def _classified() -> Data:
    return Data(*((part.values.astype(np.float32) / 16, part.labels) for part in digits()))


def _classifier(width: int, key) -> eqx.nn.Sequential:
    keys = jr.split(key, 3)
    hidden = [
        layer
        for n, k in zip((64, width), keys)
        for layer in (eqx.nn.Linear(n, width, key=k), eqx.nn.LayerNorm(width), eqx.nn.Lambda(jax.nn.relu))
    ]
    return eqx.nn.Sequential([*hidden, eqx.nn.Linear(width, 10, key=keys[2])])


def _cross_entropy(model, rows, key) -> Float[Array, ""]:
    del key
    x, labels = rows
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), labels).mean()


def _noised() -> Data:
    return Data(*((part.values.astype(np.float32) / 8 - 1,) for part in digits()))


class Perceptron(eqx.Module):
    """A network of digits `(64,)` that sees the log-SNR as one more number."""

    layers: eqx.nn.MLP

    def __call__(self, x, signal, cond=None):
        del cond
        return self.layers(jnp.append(x, signal / 4))


def _denoiser(width: int, key) -> Generator:
    net = Perceptron(eqx.nn.MLP(65, 64, width, 2, jax.nn.silu, key=key))
    return Generator(VP(), net, predicts="residual", sigma_data=SPREAD)


def _denoising(model, rows, key) -> Float[Array, ""]:
    return Denoising(weight="residual")(model, rows[0], key)[0]


def lorenz(times: int = TIMES) -> Float[np.ndarray, "times+1 3"]:
    """States of the Lorenz system (10, 28, 8/3) every `INTERVAL`, from 10 time units after (1, 1, 1)."""

    def drift(t, x):
        return 10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]

    ts = 10 + INTERVAL * np.arange(times + 1)
    return solve_ivp(drift, (0, ts[-1]), (1.0, 1.0, 1.0), "DOP853", ts, rtol=1e-8, atol=1e-8).y.T


def _steps() -> Data:
    states = lorenz()
    return _standard(states[:-1], np.diff(states, axis=0), TESTED)


def _patients() -> Data:
    bunch = require("sklearn.datasets", "digits").load_diabetes()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return _standard(bunch.data[order], bunch.target[order, None], len(order) // 4)


def _standard(x: np.ndarray, y: np.ndarray, tested: int) -> Data:
    """The last rows for tests; everything in units of the pool's standard deviation."""
    scaled = [((one - one[:-tested].mean(0)) / one[:-tested].std(0)).astype(np.float32) for one in (x, y)]
    return Data(tuple(one[:-tested] for one in scaled), tuple(one[-tested:] for one in scaled))


def _regressor(inputs: int, outputs: int) -> Callable:
    return lambda width, key: eqx.nn.MLP(inputs, outputs, width, 2, jax.nn.tanh, key=key)


def _squared(model, rows, key) -> Float[Array, ""]:
    del key
    return jnp.mean((jax.vmap(model)(rows[0]) - rows[1]) ** 2)


TASKS = {
    "digits": Task(_classified, _classifier, _cross_entropy),
    "denoiser": Task(_noised, _denoiser, _denoising),
    "Lorenz step": Task(_steps, _regressor(3, 3), _squared),
    "diabetes": Task(_patients, _regressor(10, 1), _squared),
}


class Losses(NamedTuple):
    """At the end of every trial, on validation rows and on test rows `(seeds, trials)`."""

    validation: Float[np.ndarray, "seeds trials"]
    test: Float[np.ndarray, "seeds trials"]


def train(
    task: str,
    optimizer: str,
    data: Data,
    rates: np.ndarray,
    decays: np.ndarray,
    seeds: tuple[int, ...],
    *,
    steps: int,
    width: int,
) -> Losses:
    """Every (rate, decay) on every seed, infinite where a run diverged; one compiled program for all.

    Trials of a seed share data, start and batches; the rate falls on a cosine to 0.
    """
    n, found = len(data.pool[0]), []
    for seed in seeds:
        random = np.random.default_rng(seed)
        held, rows = np.split(random.permutation(n), [round(VALIDATION * n)])
        key_start, key_run, key_validation = jr.split(jr.key(seed), 3)
        params, static = eqx.partition(_start(task, width, key_start), eqx.is_inexact_array)
        batches = random.choice(rows, (steps, BATCH))
        ends = _train(params, data.pool, batches, rates, decays, key_run, static, task, optimizer)
        validation = _losses(ends, tuple(part[held] for part in data.pool), key_validation, static, task)
        found.append((validation, _losses(ends, data.test, jr.key(0), static, task)))
    stacked = (np.stack(column) for column in zip(*found))
    return Losses(*(np.nan_to_num(one, nan=np.inf, posinf=np.inf) for one in stacked))


_start = eqx.filter_jit(lambda task, width, key: TASKS[task].start(width, key))


@functools.partial(jax.jit, static_argnames=("static", "task", "optimizer"))
def _train(params, pool, batches, rates, decays, key, static, task, optimizer) -> PyTree:
    """The parameters at the end of every trial."""
    steps = len(batches)

    def one(rate, decay):
        rule = OPTIMIZERS[optimizer].build(optax.cosine_decay_schedule(rate, steps), decay)

        def step(carry, each):
            params, state = carry
            batch, key = each
            grads = jax.grad(_loss)(params, tuple(part[batch] for part in pool), key, static, task)
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, rule.init(params)), (batches, jr.split(key, steps)))[0][0]

    return jax.vmap(one)(rates, decays)


@functools.partial(jax.jit, static_argnames=("static", "task"))
def _losses(params, rows, key, static, task) -> Float[Array, " trials"]:
    return jax.vmap(lambda one: _loss(one, rows, key, static, task))(params)


def _loss(params, rows, key, static, task) -> Float[Array, ""]:
    return TASKS[task].loss(eqx.combine(params, static), rows, key)
