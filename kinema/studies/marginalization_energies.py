"""Marginalization models of an energy, judged exactly: a lattice by enumeration, strings by counting."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kinema import learn
from kinema.generate import discrete
from kinema.generate.discrete import Ising, MarginalMLP, MarginalModel, Strings

PARTS, RATE, AVERAGING = 200, 2e-3, 0.999


class Truth(eqx.Module):
    """A lattice's law by enumeration, and the subsets whose marginals are judged."""

    law: Ising
    log_p: Float[Array, " states"]
    log_evidence: float
    x: Int[Array, "parts length"]
    masks: Bool[Array, "parts length"]
    log_marginals: Float[Array, " parts"]

    @classmethod
    def of(cls, law: Ising) -> "Truth":
        states = jnp.asarray(discrete.all_states(law.length, 2))
        log_p = jax.vmap(law)(states) - law.log_evidence()
        rng = np.random.default_rng(0)
        x = states[jr.categorical(jr.key(0), log_p, shape=(PARTS,))]
        masks = np.argsort(rng.random((PARTS, law.length)), 1) < rng.integers(1, law.length, (PARTS, 1))
        marginals = jax.lax.map(
            lambda part: discrete.log_marginal_of_table(log_p, states, *part), (x, jnp.asarray(masks))
        )
        return cls(law, log_p, law.log_evidence(), x, jnp.asarray(masks), marginals)

    def kl_of_sites(self) -> float:
        """KL of the product of the sites' own laws."""
        p = np.exp(np.asarray(self.log_p, np.float64))
        states = discrete.all_states(self.law.length, 2)
        up = p @ states / p.sum()
        log_q = np.log(np.where(states == 1, up, 1 - up)).sum(1)
        return float(np.exp(log_q) @ (log_q - self.log_p))


class Training(NamedTuple):
    """Width and depth of the network, chains or samples of a batch, and steps."""

    network: tuple[int, int]
    batch: int
    steps: int


class Lattice(NamedTuple):
    """One run: at `steps`, KL of the sampled law and mean error of log marginals; at the end, what the root says of
    log Z and the effective share of samples."""

    steps: np.ndarray
    kl: np.ndarray
    error: np.ndarray
    log_evidence: float
    effective: float


@eqx.filter_jit
def judge(truth: Truth, model: MarginalModel) -> dict[str, Array]:
    def along(order):
        log_q = discrete.order_table(model, order)
        kl = jnp.exp(log_q) @ (log_q - truth.log_p)
        return kl, 1 / jnp.exp(2 * truth.log_p - log_q).sum()

    kl, effective = jax.lax.map(along, jax.vmap(lambda key: jr.permutation(key, model.length))(jr.split(jr.key(0))))
    m = jax.vmap(model.log_marginal)(truth.x, truth.masks) - model.log_evidence()
    return {"kl": kl.mean(), "effective": effective.mean(), "error": jnp.abs(m - truth.log_marginals).mean()}


def on_lattice(truth: Truth, training: Training, mode: str, seed: int) -> Lattice:
    key_net, key_fit = jr.split(jr.key(seed))
    steps = training.steps
    probe = learn.Probe("judge", lambda model, key: judge(truth, model), every=steps // 4, of="ema")
    made = discrete.fit_energy(
        untrained(truth.law.length, 2, training.network, key_net),
        truth.law,
        mode=mode,
        optimizer=learn.adam(RATE, steps),
        steps=steps,
        chains=training.batch,
        chunk=steps // 20,
        probes=[probe],
        key=key_fit,
    )
    seen = made.history.probes["judge"]
    root = float(made.ema.log_evidence())
    return Lattice(seen.steps, seen.values["kl"], seen.values["error"], root, float(seen.values["effective"][-1]))


def untrained(length: int, categories: int, network: tuple[int, int], key) -> MarginalModel:
    width, depth = network
    net = MarginalMLP(length, categories, width=width, depth=depth, key=key)
    return MarginalModel(net, length, categories)


class Autoregressive(NamedTuple):
    """One run of the any-order autoregressive model on the energy: KL of the sampled law at each quarter."""

    steps: np.ndarray
    kl: np.ndarray


def on_lattice_by_order(truth: Truth, training: Training, seed: int) -> Autoregressive:
    """The same c trained without m: REINFORCE of KL(c's law along a random order || law), 2 L calls a sample.

    The steps are rounded down to fours.
    """
    key_net, key_fit = jr.split(jr.key(seed))
    model = untrained(truth.law.length, 2, training.network, key_net)
    params, static = learn.Trainable().split(model)
    quarter = max(training.steps // 4, 1)
    optimizer = learn.adam(RATE, 4 * quarter)
    state, kl = learn.begin(optimizer, params, AVERAGING), []
    for _ in range(4):
        state = _quarter(truth.law, static, optimizer, state, key_fit, training.batch, quarter)
        kl.append(float(judge(truth, eqx.combine(state.ema, static))["kl"]))
    return Autoregressive(quarter * np.arange(1, 5), np.array(kl))


@eqx.filter_jit
def _quarter(law: Ising, static, optimizer, state: learn.LearnState, key, batch: int, count: int) -> learn.LearnState:
    def objective(model, _, key):
        key_order, key_draw = jr.split(key)
        orders = jax.vmap(lambda key: jr.permutation(key, law.length))(jr.split(key_order, batch))
        x = jax.vmap(lambda order, key: draw_along(model, order, key))(orders, jr.split(key_draw, batch))
        log_q = jax.vmap(lambda x, order: log_prob_along(model, x, order))(x, orders)
        signal = jax.lax.stop_gradient(log_q - jax.vmap(law)(x))
        return ((signal - signal.mean()) * log_q).mean(), {}

    source = learn.BackPropagation(objective)

    def step(state, _):
        return learn.advance(state, static, None, key, source=source, optimizer=optimizer, ema=AVERAGING)[0], None

    return jax.lax.scan(step, state, None, count)[0]


def draw_along(model: MarginalModel, order: Int[Array, " length"], key) -> Int[Array, " length"]:
    """One sample by c, revealed in this order."""

    def step(x, inputs):
        count, key = inputs
        logits = model.conditionals(x, discrete.known_first(order, count))[order[count]]
        return x.at[order[count]].set(jr.categorical(key, logits)), None

    return jax.lax.scan(step, jnp.zeros_like(order), (jnp.arange(len(order)), jr.split(key, len(order))))[0]


def log_prob_along(model: MarginalModel, x: Int[Array, " length"], order: Int[Array, " length"]) -> Float[Array, ""]:
    """log p of x by c, revealed in this order."""

    def term(count):
        i = order[count]
        return model.conditionals(x, discrete.known_first(order, count))[i, x[i]]

    return jax.vmap(term)(jnp.arange(len(order))).sum()


class Written(NamedTuple):
    """One run on strings: log Z less the exact one, shares of strings with all brackets closed, values, the
    distance in total variation of the law of (value, lone brackets), and some strings."""

    log_evidence_error: float
    closed: float
    values: np.ndarray
    variation: float
    examples: tuple[str, ...]


def on_strings(law: Strings, training: Training, seed: int) -> Written:
    key_net, key_fit, key_draw = jr.split(jr.key(seed), 3)
    made = discrete.fit_energy(
        untrained(law.length, law.categories, training.network, key_net),
        law,
        optimizer=learn.adam(RATE, training.steps),
        steps=training.steps,
        chains=training.batch,
        chunk=training.steps // 4,
        key=key_fit,
    ).ema
    x, values, lone = map(np.asarray, _write(made, law, jr.split(key_draw, 8 * training.batch)))
    found = np.zeros_like(law.law())
    np.add.at(found, (values - law.counts()[0][0], lone), 1 / len(x))
    return Written(
        float(made.log_evidence()) - law.log_evidence(),
        float(np.mean(lone == 0)),
        values,
        float(np.abs(found - law.law()).sum() / 2),
        tuple(law.text(row) for row in x[:8]),
    )


@eqx.filter_jit
def _write(model: MarginalModel, law: Strings, keys) -> tuple[Array, Array, Array]:
    x = jax.vmap(lambda key: discrete.sample_any_order(model, key=key))(keys)
    return x, jax.vmap(law.value)(x), jax.vmap(law.lone)(x)
