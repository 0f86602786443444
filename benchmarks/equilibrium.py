"""Gradients of a settled network: equilibrium propagation beside implicit differentiation and back-propagation.

All three in JAX on one batch. Where weights are symmetric they agree; the time and the memory differ.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.harness import Row, compare
from kinema.learn import equilibrium as eq

STEPS, BATCH = (150, 20), 50
SIZES = {"784-256-256-10": (784, 256, 256, 10), "64-64-64-32": (64, 64, 64, 32)}
BETA = 0.02


def run(seconds: float = 3.0) -> list[Row]:
    rows = []
    for name, sizes in SIZES.items():
        batch = jr.uniform(jr.key(1), (BATCH, sizes[0])), jr.randint(jr.key(2), (BATCH,), 0, 10)
        net = eq.dense_network(sizes, 10, angle=None, key=jr.key(0))
        # smaller weights, so that all samples settle within the steps
        net = jax.tree.map(lambda leaf: 0.5 * leaf, net)
        ours, unrolled, implicit = (gradients(how, net, batch) for how in (propagated, through_time, implicitly))
        print(f"  {name}: memory {ours[1]:.1f} MB, through time {unrolled[1]:.1f} MB, implicit {implicit[1]:.1f} MB")
        for peer, theirs in (("through time", unrolled), ("implicit", implicit)):
            case = f"symmetric nudges, {name}"
            rows.append(compare(case, peer, ours[0], theirs[0], target=1, seconds=seconds, tolerance=2e-2, least=5))
    return rows


def propagated(net, batch):
    source = eq.EquilibriumPropagation(estimator=eq.Symmetric(BETA), steps=STEPS)
    return source(*eqx.partition(net, eqx.is_array), batch, jr.key(0))[0]


def through_time(net, batch):
    """Back-propagation through as many steps as the free and one nudged phase have."""

    def loss(net):
        return jax.vmap(lambda x, y: eq.settled_loss(net, x, y, steps=sum(STEPS)))(*batch).mean()

    return eqx.filter_grad(loss)(net)


def implicitly(net, batch):
    def one(x, y):
        return eq.implicit_gradient(net, x, y, tol=1e-5)[0]

    return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(*batch))


def gradients(how, net, batch):
    """(a call that returns all numbers of the gradient, the compiled program's working memory in MB)."""
    params, static = eqx.partition(net, eqx.is_array)

    @jax.jit
    def program(params, batch):
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(how(eqx.combine(params, static), batch))])

    analysis = program.lower(params, batch).compile().memory_analysis()
    memory = float("nan") if analysis is None else analysis.temp_size_in_bytes / 1e6
    return lambda: np.asarray(program(params, batch)), memory
