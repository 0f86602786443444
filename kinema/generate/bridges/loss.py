"""The loss of a light bridge, and its parts for a batch.

L = E_x0 log c(x) - E_x1 log v(y),    KL(best plan | plan of the model) = L - L of the best.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from kinema.generate.bridges.light import LightBridge


def light_bridge_loss(
    model: LightBridge, x: Float[Array, "n d"], y: Float[Array, "m d"], *, expand: bool = False
) -> Float[Array, ""]:
    """mean log c(x) - mean log v(y): above its least value by the divergence KL(best plan | plan of the model), nats.

    Memory is that of `(n, k)` and `(n, d)`. `expand` writes diagonal squares out as matrix products, which is faster;
    in single precision only for |y|^2 / (eps S) up to about 1e4.
    """
    x, y = x - model.origins[0], y - model.origins[1]
    tilts, potentials = (by_products if expand and model.lower is None else by_components)(model, x, y)
    level = jax.nn.logsumexp(model.log_weights + tilts, axis=1).mean()
    level -= jax.nn.logsumexp(model.log_weights + potentials, axis=1).mean()
    source, target = model.origins
    return level + (target @ (x.mean(0) + source) + source @ y.mean(0)) / model.eps


def by_products(model: LightBridge, x: Array, y: Array) -> tuple[Array, Array]:
    """log A_k / a_k of x and log N_k of y, both `(n, k)`, as products of matrices."""
    scales, centres, eps = jnp.exp(model.log_scales), model.centres, model.eps
    tilts = (x**2 @ scales.T + 2 * x @ centres.T) / (2 * eps)
    squares = y**2 @ (1 / scales).T - 2 * y @ (centres / scales).T + jnp.sum(centres**2 / scales, 1)
    constant = jnp.sum(model.log_scales, 1) + model.dim * jnp.log(2 * jnp.pi * eps)
    return tilts, -(squares / eps + constant) / 2


def by_components(model: LightBridge, x: Array, y: Array) -> tuple[Array, Array]:
    """The same by differences, one component after another; what one needs is computed again on the way back."""

    @jax.checkpoint
    def one(part):
        centre, log_scale, factor = part
        if model.lower is None:
            stretched, white = x * factor, (y - centre) / factor
        else:
            stretched, white = x @ factor, solve_triangular(factor, (y - centre).T, lower=True)
        square = jnp.sum(white**2, 1 if model.lower is None else 0)
        tilt = (jnp.sum(stretched**2, 1) + 2 * x @ centre) / (2 * model.eps)
        constant = jnp.sum(log_scale) + model.dim * jnp.log(2 * jnp.pi * model.eps)
        return tilt, -(square / model.eps + constant) / 2

    tilts, potentials = jax.lax.map(one, (model.centres, model.log_scales, model.factors))
    return tilts.T, potentials.T
