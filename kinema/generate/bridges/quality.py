"""How far a bridge's plan is from a known one."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kinema.generate.bridges.light import LightBridge
from kinema.generate.bridges.loss import light_bridge_loss
from kinema.generate.gaussian_mixture import bures_wasserstein


@eqx.filter_jit
def plan_gap(
    model: LightBridge, truth: LightBridge, x0: Float[Array, "n d"], x1: Float[Array, "m d"]
) -> Float[Array, ""]:
    """KL(plan of the truth | plan of the model), nats, from samples of the truth's two ends.

    0 at the truth; an estimate may be negative by its sampling error.
    """
    return light_bridge_loss(model, x0, x1) - light_bridge_loss(truth, x0, x1)


@eqx.filter_jit
def conditional_bures_uvp(
    model: LightBridge, truth: LightBridge, x0: Float[Array, "n d"], x1: Float[Array, "m d"]
) -> Float[Array, ""]:
    """100 mean_x W2^2(model's y given x, truth's y given x) / (var(x1) / 2), per cent.

    Both conditional laws as Gaussians of their exact moments; `x1` gives the variance, summed over coordinates.

    Reference: Gushchin et al., 2023 (cBW2-UVP).
    """

    def gap(x):
        ours, true = model.conditional(x), truth.conditional(x)
        return bures_wasserstein(true.mean, true.cov, ours.mean, ours.cov)

    return 200 * jax.lax.map(gap, x0, batch_size=64).mean() / jnp.var(x1, axis=0).sum()
