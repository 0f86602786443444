"""How far noisy dynamics can be from the law they should have: a bound on the Kullback-Leibler divergence.

Dynamics dX = b dt + sqrt(2 e) dW with the drift b + d in place of b end in a law with (Girsanov)

    KL(true || found) <= int E |d(t, x_t)|^2 / (4 e) dt

Nothing like it holds for e = 0: the law of a flow also depends on the score of what was learnt. From the excess losses
of velocity and score, L_b and L_s, the bound is L_b / (2 e) + e L_s / 2, least at e = sqrt(L_b / L_s).

Reference: Albergo, Boffi, Vanden-Eijnden 2023.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from kinema.errors import InputError
from kinema.generate.generator import AbstractGenerator


def kl_bound(
    found: AbstractGenerator, exact: AbstractGenerator, draw: Callable, noise: float, *, key, n: int = 4096
) -> Float[Array, ""]:
    """The bound for dynamics with volatility sqrt(2 noise), by `n` draws of times and points, nats.

    `draw(key) -> (x0, x1)` is one pair of ends; both generators are on one path and have a score.

    Raises:
        InputError: noise not positive; a generator without a score.
    """
    _check_noise(noise)
    for name, gen in (("found", found), ("exact", exact)):
        if "score" not in gen.fields:
            raise InputError(f"{name} must have a score, it has {sorted(gen.fields)}")
    path = exact.path

    def one(key, quantile):
        key_ends, key_noise = jr.split(key)
        x0, x1 = draw(key_ends)
        t = path.t_min + (path.t_max - path.t_min) * quantile
        x = path.perturb(key_noise, t, x1, None if path.origin == "none" else x0).x
        drifts = [gen.law(lambda t: (2 * noise) ** 0.5).drift(t, x) for gen in (found, exact)]
        return jnp.sum((drifts[0] - drifts[1]) ** 2)

    key_times, key_points = jr.split(key)
    quantiles = (jnp.arange(n) + jr.uniform(key_times, (n,))) / n
    squares = jax.vmap(one)(jr.split(key_points, n), quantiles)
    return (path.t_max - path.t_min) * squares.mean() / (4 * noise)


def optimal_noise(velocity_loss: float, score_loss: float) -> float:
    """The noise e = sqrt(L_b / L_s) with the least bound, from excess losses per sample (sums over coordinates).

    Raises:
        InputError: a loss that is not positive.
    """
    for name, loss in (("velocity_loss", velocity_loss), ("score_loss", score_loss)):
        if not loss > 0:
            raise InputError(f"{name} must be positive, got {loss}")
    return float((velocity_loss / score_loss) ** 0.5)


def _check_noise(noise: float):
    if not noise > 0:
        raise InputError(f"noise must be positive (a flow has no such bound), got {noise}")
