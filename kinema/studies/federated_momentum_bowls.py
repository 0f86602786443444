"""Quadratic clients, whose fixed points are known: where each rule ends, and the floor that noise leaves."""

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.learn import BackPropagation
from kinema.learn.federated import Clients, Federated, fedavg_m, fedavg_m_vr, scaffold_m, scaffold_m_vr, stacked
from kinema.learn.population import Population, member_keys, scan_rounds

STEPS, RATE, BETA, GAMMA = 10, 0.1, 0.2, 0.3  # of the fixed points
BIASED = ("fedavg", "fedavg-m", "fedavg-m-vr")
PLAIN = ("fedavg", "scaffold")  # their kind with beta 1
KINDS = {
    fedavg_m: ("fedavg", "fedavg-m"),
    fedavg_m_vr: ("fedavg-m-vr",),
    scaffold_m: ("scaffold", "scaffold-m"),
    scaffold_m_vr: ("scaffold-m-vr",),
}
CLIENTS, DIM, NOISE, NOISE_STEPS, NOISE_BETA = 10, 20, 2.0, 5, 0.03  # of the floors
NOISE_RATES = tuple((local, server) for local in (0.01, 0.05) for server in (0.1, 0.3, 1.0))


def bowl(x, batch, key):
    """a/2 |x - b|² with a gradient noise of standard deviation "noise", whatever the point."""
    gap = x - batch["b"][0]
    draw = batch["noise"][0] * jr.normal(key, x.shape, x.dtype) / x.size**0.5
    return 0.5 * batch["a"][0] * jnp.sum(gap**2) + jnp.sum(draw * (x - jax.lax.stop_gradient(x))), {}


SOURCE = BackPropagation(bowl)


def weights(name: str, a: np.ndarray, rate: float = RATE, steps: int = STEPS, beta: float = BETA) -> np.ndarray:
    """How much each client's minimum counts in the fixed point of a rule without noise."""
    if name not in BIASED:
        return a
    return 1 - (1 - rate * a * (beta if name == "fedavg-m" else 1)) ** steps


def fixed_points(seed: int, rounds: int, makes: Iterable) -> dict[str, tuple[float, float]]:
    """(distance of the last model from its closed form, its bias) of the rules of some kinds, in double precision."""
    random = np.random.default_rng(seed)
    a, b = random.uniform(0.5, 3.0, 5), random.normal(size=5)
    found = {}
    with jax.enable_x64(True):
        clients = stacked({"a": a[:, None], "b": b[:, None, None], "noise": np.zeros((5, 1))})
        for make in makes:
            names = KINDS[make]
            beta = np.array([1.0 if name in PLAIN else BETA for name in names])
            rates = np.tile([RATE, GAMMA], (len(names), 1))
            x = _run(make, rounds, 1, STEPS, beta, rates, jr.key(seed)[None], clients)[:, 0, -1, 0]
            for name, end in zip(names, x):
                share = weights(name, a)
                found[name] = float(abs(end - share @ b / share.sum())), float(abs(end - a @ b / a.sum()))
    return found


def floors(seed: int, runs: int, rounds: int) -> dict[str, np.ndarray]:
    """Mean |∇F|² over the last sixth of the rounds of noisy runs, by rule: one for each of `NOISE_RATES`."""
    random = np.random.default_rng(seed)
    a, b = random.uniform(0.5, 1.5, CLIENTS), 0.1 * random.normal(size=(CLIENTS, DIM))
    noise = np.full((CLIENTS, 1), NOISE)
    clients = stacked(jax.tree.map(np.float32, {"a": a[:, None], "b": b[:, None], "noise": noise}))
    keys, rates = jr.split(jr.key(seed), runs), np.array(NOISE_RATES, np.float32)
    found = {}
    for make, names in list(KINDS.items())[:2]:
        beta = np.array([1.0 if name in PLAIN else NOISE_BETA for name in names], np.float32)
        settings = np.repeat(beta, len(rates)), np.tile(rates, (len(names), 1))
        x = _run(make, rounds, DIM, NOISE_STEPS, *settings, keys, clients)[:, :, -max(rounds // 6, 1) :]
        grad = a.mean() * x - (a[:, None] * b).mean(0)
        each = (grad**2).sum(-1).mean((1, 2)).reshape(len(names), len(rates))
        found |= dict(zip(names, each))
    return found


def _run(make, rounds: int, dim: int, steps: int, beta, rates, keys, clients: Clients) -> np.ndarray:
    """Models (settings, runs, rounds, dim)."""
    settings = jnp.asarray(beta), jnp.asarray(rates)
    return np.asarray(_compiled(make, rounds, dim, steps, *settings, keys, clients), np.float64)


@eqx.filter_jit
def _compiled(make, rounds, dim, steps, beta, rates, keys, clients):
    count = len(clients.sizes)

    def one(beta, rates, key):
        federated = Federated(make(beta), SOURCE, count, steps, rates[0], rates[1])
        key_rounds, key_members = jr.split(key)
        server, members = federated.begin(jnp.zeros(dim))
        state = Population(server, members, jnp.zeros((), jnp.int32))
        options = {"rule": federated, "rounds": rounds, "measure": lambda server: {"x": server.model}}
        return scan_rounds(state, clients, member_keys(key_members, count), key_rounds, **options)[1]["x"]

    return jax.vmap(lambda beta, rates: jax.vmap(lambda key: one(beta, rates, key))(keys))(beta, rates)
