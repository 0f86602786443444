"""The interpolant of least energy: a Schrödinger bridge as a game between a drift and a bend.

    x_t = (1 - t) x0 + t x1 + t (1 - t) h(t, x0, x1) + gamma z,    gamma^2 = eps t (1 - t)

    max over h, min over u of  E int |u|^2 / 2 - u . (d/dt (x_t - gamma z) + (gamma' - eps / (2 gamma)) z) dt

For every h the best u is the drift of dX = u dt + sqrt(eps) dW that has the law of x_t at all times, and the value is
minus half its energy E int |u|^2 dt; the best h makes that the least of all such motions, the bridge. Here gamma' -
eps / (2 gamma) is -sqrt(eps t / (1 - t)): z and -z in one draw cancel what grows without bound.

Reference: Albergo, Boffi, Vanden-Eijnden 2023; for the energy Benamou & Brenier 2000, Léonard 2014.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kinema import learn, models
from kinema.errors import InputError
from kinema.generate.bridges.fitting import check_sides
from kinema.generate.bridges.light import check_eps
from kinema.learn import History

NEAR = 1e-3  # the game leaves out times closer than this to an end
SPAN = 4.0  # the networks are told t as a signal from -4 to 4: even in t, since a bend that is free to grow like
# log t or faster toward an end gains energy where no draw sees it


class OptimalInterpolant(eqx.Module):
    """An interpolant and the drift that has its laws; a law, from t = 0 (source) to t = 1 (target). One sample.

    `net(x, signal)` is the drift and `bend([x0, x1], signal)` is h, with x0 and x1 joined on the last axis. Both see
    and return numbers in units of `unit`, x0 and x1 measured from `origins (2, d)`, x from the line between those;
    `signal` goes from -4 to 4 with t. `eps` is the volatility: a motion between fixed ends has variance eps t (1 - t).

    >>> still = lambda x, signal: jnp.zeros(1)
    >>> linear = OptimalInterpolant(still, still, eps=0.5, origins=jnp.zeros((2, 1)))
    >>> linear.between(0.5, jnp.array([0.0]), jnp.array([2.0])).tolist()
    [1.0]

    It is a law with diffusion sqrt(eps): `integrate(bridge, x0, ts, method="euler_maruyama", dt=0.01, key=key)`.

    Raises:
        InputError: eps or unit not positive; origins not of shape (2, d).
    """

    net: Callable
    bend: Callable
    eps: Float[Array, ""]
    origins: Float[Array, "2 d"]
    unit: Float[Array, ""]

    def __init__(self, net: Callable, bend: Callable, *, eps: Any, origins: Any, unit: Any = 1.0):
        origins = jnp.asarray(origins, jnp.result_type(float))
        if origins.ndim != 2 or len(origins) != 2:
            raise InputError(f"origins must have shape (2, d), one row for each end, got {origins.shape}")
        if not unit > 0:
            raise InputError(f"unit must be positive, got {unit}")
        self.net, self.bend, self.origins = net, bend, origins
        self.eps, self.unit = jnp.asarray(check_eps(eps), origins.dtype), jnp.asarray(unit, origins.dtype)

    def between(self, t: Any, x0: Float[Array, " d"], x1: Float[Array, " d"]) -> Float[Array, " d"]:
        """x_t without its noise."""
        return self._course(t, x0, x1)[0]

    def drift(self, t: Any, x: Float[Array, " d"], args: Any = None) -> Float[Array, " d"]:
        """u."""
        source, target = self.origins
        return self.unit * self.net((x - (1 - t) * source - t * target) / self.unit, _signal(t)) + target - source

    def diffusion(self, t: Any, x: Float[Array, " d"], args: Any = None) -> Float[Array, " d"]:
        """sqrt(eps) in every coordinate."""
        return jnp.full_like(x, 1) * jnp.sqrt(self.eps).astype(x.dtype)

    def energy(self, x0: Float[Array, "n d"], x1: Float[Array, "m d"], *, key: PRNGKeyArray) -> Float[Array, ""]:
        """E int |u|^2 dt for x0 and x1 paired at random, over n draws of time and noise.

        Of the best drift for this interpolant, less the mean square error of `drift`: so it judges both. The least
        that any motion of this volatility has between the two laws is the energy of the Schrödinger bridge.

        Raises:
            InputError: x0 and x1 of different shapes.
        """
        if x0.shape != x1.shape:
            raise InputError(f"x0 and x1 must have the same shape, got {x0.shape} and {x1.shape}")
        key_pairs, key_draws = jr.split(key)
        return -2 * _value(self, x0[jr.permutation(key_pairs, len(x0))], x1, key_draws)[0]

    def _course(self, t: Any, x0: Array, x1: Array) -> tuple[Array, Array]:
        """x_t without its noise, and its rate."""
        t = jnp.asarray(t, x1.dtype)
        ends = jnp.concatenate([x0 - self.origins[0], x1 - self.origins[1]]) / self.unit
        h, rate = jax.jvp(lambda t: self.unit * self.bend(ends, _signal(t)), (t,), (jnp.ones_like(t),))
        return (1 - t) * x0 + t * x1 + t * (1 - t) * h, x1 - x0 + (1 - 2 * t) * h + t * (1 - t) * rate


class _Game(eqx.Module):
    """The objective of both players: what lowers it for the drift raises it for the bend."""

    sides: tuple[Float[Array, "n d"], Float[Array, "m d"]]
    draws: int = eqx.field(static=True)

    def __call__(self, model: OptimalInterpolant, batch: None, key) -> tuple[Float[Array, ""], dict[str, Array]]:
        key_draws, *keys = jr.split(key, 3)
        x0, x1 = (side[jr.randint(k, (self.draws,), 0, len(side))] for k, side in zip(keys, self.sides))
        turned = jax.tree.map(lambda p: 2 * jax.lax.stop_gradient(p) - p if eqx.is_inexact_array(p) else p, model.bend)
        value, energy = _value(eqx.tree_at(lambda m: m.bend, model, turned), x0, x1, key_draws)
        return value, {"energy": energy}


class InterpolantFit(NamedTuple):
    """`bridge` with averaged weights; `history` of the value of the game, "loss", and of "energy", E int |u|^2 dt.

    Both are in the units of the fit, where each side is centred and the mean variance of the two is 1.
    """

    bridge: OptimalInterpolant
    history: History


def fit_optimal_interpolant(
    x0: Any,
    x1: Any,
    *,
    eps: Any,
    width: int = 64,
    depth: int = 2,
    steps: int = 2000,
    batch_size: int = 256,
    rate: float = 1e-2,
    lead: float = 5.0,
    ema: float | None = 0.99,
    key: PRNGKeyArray,
    progress: bool = True,
) -> InterpolantFit:
    """The Schrödinger bridge of volatility `eps` from samples `x0 (n, d)` to samples `x1 (m, d)`, not paired.

    Drift and bend are perceptrons of `width` and `depth`, moved together by Adam; the drift learns at `rate`, the bend
    `lead` times slower, so that it meets a drift that is nearly the best one. No motion is simulated. Where a mixture
    of Gaussians is enough, `fit_light_bridge` is faster and has a density.

    >>> x0, x1 = jr.normal(jr.key(0), (500, 1)), 2 + jr.normal(jr.key(1), (500, 1))
    >>> bridge, history = fit_optimal_interpolant(x0, x1, eps=0.5, width=8, steps=20, key=jr.key(2), progress=False)
    >>> bridge.drift(0.5, x0[0]).shape
    (1,)

    Raises:
        InputError: an argument is not acceptable; sides of other dimension; a row that is not finite; all rows equal.
        NotFinite: the loss became NaN or infinite.
    """
    x0, x1 = check_sides(x0, x1)
    check_eps(eps)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if not lead >= 1:
        raise InputError(f"lead must be at least 1, got {lead}")
    origins = np.stack([side.mean(0, np.float64) for side in (x0, x1)])
    unit = float(np.sqrt(np.mean([side.var(0, np.float64).mean() for side in (x0, x1)])))
    if not unit > 0:
        raise InputError("x0 and x1 must vary, all rows are equal")
    source, target = (
        jnp.asarray((side - centre) / unit, jnp.result_type(float)) for side, centre in zip((x0, x1), origins)
    )
    key_net, key_bend, key_fit = jr.split(key, 3)
    sizes = {"shape": origins.shape[1:], "width": width, "depth": depth}
    net, bend = models.make("mlp", **sizes, key=key_net), models.make("mlp", **sizes, joined=2, key=key_bend)
    fitted = learn.fit(
        OptimalInterpolant(net, bend, eps=eps / unit**2, origins=np.zeros_like(origins)),
        _Game((source, target), batch_size),
        trainable=("net/*", "bend/*"),
        optimizer=_two_rates(rate, steps, lead),
        steps=steps,
        key=key_fit,
        ema=ema,
        progress=progress,
    )
    found = fitted.ema
    return InterpolantFit(
        OptimalInterpolant(found.net, found.bend, eps=eps, origins=origins, unit=unit), fitted.history
    )


@functools.lru_cache(maxsize=8)  # the same object for the same numbers: `fit` does not compile a second time
def _two_rates(rate: float, steps: int, lead: float) -> optax.GradientTransformation:
    def slower(updates, params):
        return eqx.tree_at(lambda m: m.bend, updates, jax.tree.map(lambda leaf: leaf / lead, updates.bend))

    return optax.chain(learn.adam(rate, steps), optax.stateless(slower))


@eqx.filter_jit
def _value(model: OptimalInterpolant, x0: Array, x1: Array, key) -> tuple[Array, Array]:
    """The value of the game and the energy of its drift: pairs row by row, stratified times, z and -z."""
    n = len(x1)
    key_times, key_noise = jr.split(key)
    t = NEAR + (1 - 2 * NEAR) * (jnp.arange(n) + jr.uniform(key_times, (n,), x1.dtype)) / n

    def one(t, x0, x1, z):
        middle, rate = model._course(t, x0, x1)
        gamma, pull = jnp.sqrt(model.eps * t * (1 - t)), jnp.sqrt(model.eps * t / (1 - t))
        there, back = (model.drift(t, middle + sign * gamma * z) for sign in (1, -1))
        energy = (there @ there + back @ back) / 2
        return energy / 2 - (rate @ (there + back) - pull * z @ (there - back)) / 2, energy

    values, energies = jax.vmap(one)(t, x0, x1, jr.normal(key_noise, x1.shape, x1.dtype))
    return values.mean(), energies.mean()


def _signal(t: Any) -> Array:
    return SPAN * (2 * jnp.asarray(t, jnp.result_type(float)) - 1)
