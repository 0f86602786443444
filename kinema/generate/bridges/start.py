"""Where the fit of a light bridge begins: at clusters of the target, or at an earlier bridge."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.generate.bridges.light import LightBridge


def first_guess(seen: list, components: int, covariance: str, eps: float, key: PRNGKeyArray) -> LightBridge:
    """Centres of clusters of the target, equal weights, and one S that gives the clusters their mean variance.

    Sample points are no centres in many dimensions: ten of them miss one of five overlapping modes half the time.
    """
    source, target = seen
    if components > len(target):
        raise InputError(
            f"components must be at most the number of target samples to begin from, {len(target)}, got {components}"
        )
    key_some, key_spread = jr.split(key)
    some = jr.choice(key_some, len(target), (min(len(target), 2048 + 8 * components),), replace=False)
    centres, within = clusters(target[some], components, key_spread)
    # eps S + S^2 var(x) is the variance of y in a component
    ratio = 4 * jnp.maximum(within, 1e-3) * jnp.var(source, axis=0).mean() / eps**2
    scale = 2 * jnp.maximum(within, 1e-3) / eps / (1 + jnp.sqrt(1 + ratio))
    bridge = LightBridge(centres, scale, jnp.full(components, 1 / components), eps=eps)
    if covariance == "diagonal":
        return bridge
    dim = target.shape[1]
    return eqx.tree_at(lambda b: b.lower, bridge, jnp.zeros((components, dim, dim)), is_leaf=lambda leaf: leaf is None)


@eqx.filter_jit
def clusters(rows: Float[Array, "n d"], components: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    """k-means from k-means++ seeds: centres, and the mean variance of a coordinate about its row's centre."""

    def seed(nearest, key):
        # without distances left (fewer different rows than centres) any row will do
        centre = rows[jr.categorical(key, jnp.log(jnp.where(nearest.max() > 0, nearest, 1.0)))]
        return jnp.minimum(nearest, jnp.sum((rows - centre) ** 2, 1)), centre

    def squares(centres):
        return jnp.sum(rows**2, 1)[:, None] - 2 * rows @ centres.T + jnp.sum(centres**2, 1)

    def move(centres, _):
        share = jax.nn.one_hot(jnp.argmin(squares(centres), 1), components, dtype=rows.dtype)
        count = share.sum(0)[:, None]
        return jnp.where(count > 0, share.T @ rows / jnp.maximum(count, 1), centres), None

    centres = jax.lax.scan(seed, jnp.ones(len(rows), rows.dtype), jr.split(key, components))[1]
    centres = jax.lax.scan(move, centres, length=20)[0]
    return centres, jnp.maximum(squares(centres).min(1).mean() / rows.shape[1], 0)


def continued(start, components, covariance, dim, eps, unit, origins) -> LightBridge:
    """An earlier bridge in the units and from the origins of this fit."""
    wanted = (components, dim, covariance)
    given = (start.components, start.dim, "diagonal" if start.lower is None else "full")
    if given != wanted:
        raise InputError(f"start must have (components, dim, covariance) = {wanted}, got {given}")
    start = start.recentred(jnp.asarray(origins, start.centres.dtype))
    parts = (start.centres / unit, jnp.asarray(eps, start.eps.dtype), jnp.zeros_like(start.origins))
    return eqx.tree_at(lambda b: (b.centres, b.eps, b.origins), start, parts)
