"""A lattice learnt from its energy beside torchgfn: equal networks, batches, steps and rate, one thread.

The peer learns by detailed balance with a uniform backward policy, so that it too reveals the sites in any order; its
log reward is the same function. Both are first judged on the 3 x 3 lattice, where the law that each samples from is
known by adding up all ways to every state: ours must be as near to the lattice's law. Then steps are timed.

torchgfn 2.4.1 asks for numpy < 2 but runs with later ones: pip install --no-deps torchgfn, and what it then misses.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import torch
from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator
from gfn.gflownet import DBGFlowNet
from gfn.gym import DiscreteEBM
from gfn.gym.discrete_ebm import EnergyFunction
from gfn.preprocessors import Preprocessor
from gfn.samplers import Sampler
from gfn.utils.modules import MLP

from benchmarks.harness import Row, compare
from kinema import learn
from kinema.generate import discrete
from kinema.generate.discrete import Ising, MarginalMLP, MarginalModel

SMALL, TIMED, WIDTH, BATCH, STEPS, RATE, SEEDS = (3, 3), (4, 4), 128, 256, 600, 2e-3, 3


def run(seconds: float = 3.0) -> list[Row]:
    ours, theirs = ([judge(seed) for seed in range(SEEDS)] for judge in (kl_of_ours, kl_of_theirs))
    print(f"KL on {SMALL}, {SEEDS} seeds: Kinema {np.round(ours, 4)}, torchgfn {np.round(theirs, 4)}", flush=True)
    if not np.mean(ours) <= np.mean(theirs):
        raise AssertionError(f"Kinema's KL {np.mean(ours):.4f} is above torchgfn's {np.mean(theirs):.4f}")
    law, count = Ising(TIMED), 20

    def in_kinema():
        return np.asarray(trained(law, count, 0).log_evidence())

    def in_torchgfn():
        return np.asarray(train_peer(law, count, 0)[1].detach())

    case = f"{count} steps, {TIMED[0]} x {TIMED[1]} lattice"
    return [compare(case, "torchgfn", in_kinema, in_torchgfn, target=3, seconds=seconds, tolerance=None, least=5)]


def trained(law: Ising, steps: int, seed: int) -> MarginalModel:
    net = MarginalMLP(law.length, 2, width=WIDTH, depth=2, key=jr.key(seed))
    model = MarginalModel(net, law.length, 2)
    optimizer = learn.adam(RATE, steps)
    return discrete.fit_energy(
        model, law, optimizer=optimizer, steps=steps, chains=BATCH, chunk=20, key=jr.key(seed), progress=False
    ).ema


def kl_of_ours(seed: int) -> float:
    """Of the mean law over 64 random orders."""
    law = Ising(SMALL)
    model = trained(law, STEPS, seed)
    orders = jax.vmap(lambda key: jr.permutation(key, law.length))(jr.split(jr.key(seed), 64))
    log_q = jax.nn.logsumexp(jnp.stack([discrete.order_table(model, order) for order in orders]), 0) - np.log(64)
    return kl(np.asarray(log_q, np.float64), law)


def kl(log_q: np.ndarray, law: Ising) -> float:
    log_p = np.asarray(jax.vmap(law)(jnp.asarray(discrete.all_states(law.length, 2))), np.float64) - law.log_evidence()
    return float(np.exp(log_q) @ (log_q - log_p))


class Energy(EnergyFunction):
    """-log f of spins -1 and 1."""

    def __init__(self, law: Ising):
        super().__init__()
        self.law = law

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        s = states.to(torch.get_default_dtype()).unflatten(-1, self.law.shape)
        bonds = s * (s.roll(1, -2) + s.roll(1, -1))
        return -(self.law.coupling * bonds.sum((-2, -1)) + self.law.field * s.sum((-2, -1)))


class Symbols(Preprocessor):
    """One of three symbols a site, as ours."""

    def __init__(self, sites: int):
        super().__init__(output_dim=3 * sites)

    def preprocess(self, states) -> torch.Tensor:
        return torch.nn.functional.one_hot(states.tensor + 1, 3).flatten(-2).to(torch.get_default_dtype())


def train_peer(law: Ising, steps: int, seed: int):
    """The forward policy, and the logarithm of the flow through the empty state."""
    torch.manual_seed(seed)
    env, symbols = DiscreteEBM(law.length, Energy(law)), Symbols(law.length)
    shape = {"hidden_dim": WIDTH, "n_hidden_layers": 3, "activation_fn": "elu"}
    forward = DiscretePolicyEstimator(MLP(3 * law.length, env.n_actions, **shape), env.n_actions, symbols)
    backward = DiscretePolicyEstimator.uniform(env.n_actions, preprocessor=symbols)
    flow = ScalarEstimator(MLP(3 * law.length, 1, **shape), symbols)
    network = DBGFlowNet(forward, backward, flow)
    optimizer = torch.optim.Adam([*forward.parameters(), *flow.parameters()], lr=RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sampler = Sampler(forward)
    for _ in range(steps):
        trajectories = sampler.sample_trajectories(env, n=BATCH)
        loss = network.loss(env, network.to_training_samples(trajectories), recalculate_all_logprobs=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
    return forward, flow(env.states_from_tensor(env.s0[None]))


def kl_of_theirs(seed: int) -> float:
    """Of the law sampled, by adding up all ways from the empty state."""
    law = Ising(SMALL)
    sites = law.length
    forward, _ = train_peer(law, STEPS, seed)
    env = DiscreteEBM(sites, Energy(law))
    states = env.all_states
    with torch.no_grad():
        logits = forward(states)
        logits[~states.forward_masks] = -torch.inf
        step = torch.softmax(logits.double(), -1).numpy()
    values = states.tensor.numpy()
    powers = 3 ** np.arange(sites - 1, -1, -1)
    reach = np.zeros(len(values))
    reach[0] = 1.0  # the first state is the empty one
    for known in range(sites):
        (rows,) = np.nonzero((values >= 0).sum(1) == known)
        for site in range(sites):
            free = rows[values[rows, site] < 0]
            for value in (0, 1):
                np.add.at(reach, free + (value + 1) * powers[site], reach[free] * step[free, site + value * sites])
    whole = (values >= 0).all(1)
    return kl(np.log(reach[whole]), law)
