"""Light Schrödinger bridges where the plan is known: both recipes on samples of a random bridge."""

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float

from kinema.generate.bridges import LightBridge, conditional_bures_uvp, fit_light_bridge, light_bridge_loss
from kinema.generate.gaussian_mixture import bures_wasserstein

COMPONENTS, TRUE_COMPONENTS, RADIUS, JUDGED = 10, 5, 5.0, 500
PUBLISHED_BATCH, PUBLISHED_RATES = 128, {0.1: 1e-3, 1.0: 3e-3, 10.0: 6e-2}  # the rate by eps
OURS, PUBLISHED, SAME_START = "batch 512, cosine", "published recipe", "published recipe, our start"
INDEPENDENT = "independent plan"


class Pair(NamedTuple):
    """One benchmark: dimension, volatility, steps of both recipes, samples a side, and the most UVP (per cent)."""

    dim: int
    eps: float
    steps: int
    samples: int
    target: float | None

    @property
    def name(self) -> str:
        return f"dim {self.dim}, eps {self.eps:g}"


class Found(NamedTuple):
    """UVP of each method, per cent, and the seconds of our fit."""

    uvp: dict[str, float]
    seconds: float


def on_pair(pair: Pair, key) -> Found:
    """Every recipe on samples of a random bridge, judged on conditional laws at new source points."""
    key_truth, key_ends, key_fit, key_published, key_judge = jr.split(key, 5)
    directions = jr.normal(key_truth, (TRUE_COMPONENTS, pair.dim))
    truth = LightBridge(RADIUS * directions / jnp.linalg.norm(directions, axis=1, keepdims=True), eps=pair.eps)
    x0, x1 = ends(truth, pair.samples, key_ends)
    judge = jr.normal(key_judge, (JUDGED, pair.dim))
    options = {"eps": pair.eps, "components": COMPONENTS, "batch_size": 512}
    start = time.perf_counter()
    ours, _ = fit_light_bridge(x0, x1, **options, steps=pair.steps, key=key_fit)
    seconds = time.perf_counter() - start
    same_start = fit_light_bridge(x0, x1, **options, steps=1, key=key_fit).bridge.recentred(jnp.zeros((2, pair.dim)))
    of_samples = LightBridge(x1[:COMPONENTS], 1.0, np.full(COMPONENTS, 1 / COMPONENTS), eps=pair.eps)
    bridges = {OURS: ours}
    for name, begin in ((PUBLISHED, of_samples), (SAME_START, same_start)):
        bridges[name] = published(begin, x0, x1, pair.steps, PUBLISHED_RATES[pair.eps], key_published)
    uvp = {name: float(conditional_bures_uvp(one, truth, judge, x1)) for name, one in bridges.items()}
    uvp[INDEPENDENT] = float(independent_uvp(truth, judge, x1))
    return Found(uvp, seconds)


@eqx.filter_jit
def ends(truth: LightBridge, n: int, key) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """Unpaired samples of both ends: source N(0, 1)."""
    key_source, key_other, key_draw = jr.split(key, 3)

    def end(keys):
        return truth.sample(jr.normal(keys[0], (truth.dim,)), key=keys[1])

    x1 = jax.lax.map(end, (jr.split(key_other, n), jr.split(key_draw, n)), batch_size=10_000)
    return jr.normal(key_source, (n, truth.dim)), x1


@eqx.filter_jit
def published(
    begin: LightBridge, x0: Float[Array, "n d"], x1: Float[Array, "m d"], steps: int, rate: Any, key
) -> LightBridge:
    """The published recipe from `begin`: small batches, a constant rate, eps log a as the parameter."""
    key_source, key_target = jr.split(key)
    params = {
        "weights": begin.eps * begin.log_weights,
        "centres": begin.centres,
        "log_scales": begin.log_scales,
    }
    optimizer = optax.adam(rate)
    rows = [jr.randint(k, (steps, PUBLISHED_BATCH), 0, len(x)) for k, x in ((key_source, x0), (key_target, x1))]

    def bridge(params):
        parts = (params["weights"] / begin.eps, params["centres"], params["log_scales"])
        return eqx.tree_at(lambda b: (b.log_weights, b.centres, b.log_scales), begin, parts)

    def step(carry, batch):
        params, state = carry
        x, y = x0[batch[0]], x1[batch[1]]
        gradient = jax.grad(lambda p: light_bridge_loss(bridge(p), x, y, expand=True))(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), tuple(rows))
    return bridge(params)


@eqx.filter_jit
def independent_uvp(truth: LightBridge, x0: Float[Array, "n d"], x1: Float[Array, "m d"]) -> Float[Array, ""]:
    """The metric of the plan that forgets x: every conditional law is the target's."""
    mean, cov = x1.mean(0), jnp.atleast_2d(jnp.cov(x1.T))

    def gap(x):
        plan = truth.conditional(x)
        return bures_wasserstein(plan.mean, plan.cov, mean, cov)

    return 200 * jax.lax.map(gap, x0, batch_size=64).mean() / jnp.trace(cov)
