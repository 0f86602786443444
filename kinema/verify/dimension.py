"""The dimension of the set on which a generator puts its samples, at a point, read off its score.

| method     | what is read                                                     | right under a gauge |
|------------|------------------------------------------------------------------|---------------------|
| likelihood | D + d log p_sigma(x) / d log sigma, log p by change of variables | yes                 |
| flow       | singular values of the flow's Jacobian that do not shrink with sigma | no              |
| flipd      | D + sigma^2 (div score + |score|^2), one evaluation              | no                  |
| normal     | largest gap of the singular values of scores around x            | no                  |

A score may be wrong by a *gauge* r, div(p r) = 0, without any change of samples or densities. The last three take the
field for a gradient, so `trusted` is False for them where its Jacobian is not symmetric; the first needs no trust.

Reference: Horvat & Pfister 2024; Tempczyk et al. 2022 (likelihood); Kamkari et al. 2024 (FLIPD); Stanczuk et al. 2024.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from kinema.errors import InputError, choose
from kinema.generate.generator import AbstractGenerator
from kinema.verify.conservative import MOST_EXACT, asymmetry
from kinema.verify.stepping import runge_kutta

SLOPE = 0.5  # singular values that fall with less than this power of sigma do not shrink
MOST_ASYMMETRY = 0.05
SPARE = 40  # scores around a point beside the published 4 d: too few for small d
NARROWER = 1.5  # ratio of the two noise levels between which log p is compared


class FlowJacobian(NamedTuple):
    """End of the flow from one start and, at each level, noise ratio and singular values, largest first."""

    x: Float[Array, " d"]
    singular_values: Float[Array, "levels d"]
    noise: Float[Array, " levels"]


class DimensionReport(NamedTuple):
    """`dimension (n,)` at each point, not rounded; `asymmetry` of the score there at the least noise; `trusted` unless
    the method takes the score for a gradient and it is not one."""

    dimension: Float[Array, " n"]
    asymmetry: Float[Array, ""]
    trusted: Bool[Array, ""]


def intrinsic_dimension(
    gen: AbstractGenerator,
    x: Float[Array, "n d"],
    *,
    method: str = "likelihood",
    noise: float = 0.05,
    most: float = 3.0,
    steps: int = 400,
    key,
) -> DimensionReport:
    """Dimension at the rows of x, points of the data or samples.

    `noise` is the ratio s / a at which the set is looked at: below its curvature and gaps, above what the network
    resolves; `most`, at least three times the data's size, is where flows begin; the
    error of "likelihood" that comes of it falls like 1 / most^2. "flow" starts at x noised to `most`, ends on
    the set somewhere else, and takes slopes over the last decade down to `noise`. Steps are Runge-Kutta, of equal log
    noise; halve them: gauges that grow fast towards the data need many.

    Raises:
        InputError: an unknown method; noise not below most, or outside the path; more than 64 dimensions unless the
            method is "flipd" or "normal"; a generator without a score or with an origin.
    """
    run = choose(METHODS, method, "method")
    _check(gen, x, noise, most, steps)
    if method in ("flow", "likelihood") and x.shape[1] > MOST_EXACT:
        raise InputError(
            f"method={method!r} takes {x.shape[1]} derivatives in each of {steps} steps, at most {MOST_EXACT} are"
            " taken; use 'flipd' or 'normal'"
        )
    if method == "likelihood":
        _check(gen, x, noise / NARROWER, most, steps)
    key_run, key_points, key_probes = jr.split(key, 3)
    dimension, at = run(gen, x, jnp.asarray(noise, x.dtype), jnp.asarray(most, x.dtype), steps, key_run)
    t = gen.path.time_of_log_snr(-jnp.log(jnp.asarray(noise)))
    a, _, s = gen.path.coefficients(t)
    near = a * at + (0.0 if method == "flow" else s * jr.normal(key_points, x.shape, x.dtype))
    odd = asymmetry(gen, near, t, key=key_probes)
    return DimensionReport(dimension, odd, jnp.asarray(method == "likelihood") | (odd <= MOST_ASYMMETRY))


def flow_jacobian(
    gen: AbstractGenerator,
    x: Float[Array, " d"],
    *,
    noise: tuple[float, float] = (3.0, 0.005),
    steps: int = 1000,
    levels: int = 20,
) -> FlowJacobian:
    """Singular values of dPhi / dx along the probability flow from x at noise ratio `noise[0]` down to `noise[1]`.

    x and all results are in units of data, x / a. Data on d dimensions: d values come to rest, the others fall like the
    noise. `steps` Runge-Kutta steps are cut evenly into `levels`.

    Raises:
        InputError: noise that does not fall; more than 64 dimensions; levels that do not divide steps.
    """
    _check(gen, x[None], noise[1], noise[0], steps)
    if x.size > MOST_EXACT:
        raise InputError(f"a Jacobian of {x.size} rows was asked for, at most {MOST_EXACT}")
    if levels < 1 or steps % levels:
        raise InputError(f"levels must divide steps, got levels={levels}, steps={steps}")
    return _jacobians(gen, x[None], jnp.asarray(noise[0], x.dtype), jnp.asarray(noise[1], x.dtype), steps, levels, True)


def flipd(gen: AbstractGenerator, x: Float[Array, " d"], noise) -> Float[Array, ""]:
    """D + sigma^2 (div score + |score|^2) at the noise ratio sigma and the clean point x, in units of data."""
    score = _score(gen, jnp.log(noise))
    ways = jnp.eye(x.size, dtype=x.dtype)
    value, slopes = jax.vmap(lambda way: jax.jvp(score, (x,), (way,)), out_axes=(None, 0))(ways)
    return x.size + noise**2 * (jnp.trace(slopes) + jnp.sum(value**2))


def _score(gen: AbstractGenerator, log_noise):
    """The score of y = x / a, whose noise is sigma = s / a: that of a path which does not scale its data."""
    t = gen.path.time_of_log_snr(-log_noise)
    a = gen.path.coefficients(t)[0]
    return lambda y: a * jnp.asarray(gen(t, a * y).score)


@eqx.filter_jit
def _jacobians(gen, x, most, least, steps: int, levels: int, single: bool = False):
    d = x.shape[1]

    def slope(log_noise, state):
        y, jacobian = state
        square, score = jnp.exp(2 * log_noise), _score(gen, log_noise)
        value, turned = jax.vmap(lambda way: jax.jvp(score, (y,), (way,)), in_axes=1, out_axes=(None, 1))(jacobian)
        return -square * value, -square * turned

    edges = jnp.linspace(jnp.log(most), jnp.log(least), levels + 1)

    def one(start):
        def body(state, ends):
            state = runge_kutta(slope, state, ends[0], ends[1], steps // levels)
            return state, jnp.linalg.svd(state[1], compute_uv=False)

        (end, _), values = jax.lax.scan(body, (start, jnp.eye(d, dtype=x.dtype)), (edges[:-1], edges[1:]))
        return FlowJacobian(end, values, jnp.exp(edges[1:]))

    return one(x[0]) if single else jax.vmap(one)(x)


def _flow(gen, x, noise, most, steps: int, key):
    start = x + most * jr.normal(key, x.shape, x.dtype)
    decades = float(np.log10(float(most) / float(noise)))
    levels = max(4, round(8 * decades))
    found = _jacobians(gen, start, most, noise, levels * max(1, steps // levels), levels)
    last = found.noise[0] <= 10 * noise * (1 + 1e-3)
    logs, places = jnp.log(found.singular_values[:, last]), jnp.log(found.noise[0][last])
    places = places - places.mean()
    slopes = jnp.einsum("nld,l->nd", logs, places) / jnp.sum(places**2)
    return jnp.sum(slopes < SLOPE, -1).astype(x.dtype), found.x


@eqx.filter_jit
def _likelihood(gen, x, noise, most, steps: int, key):
    def slope(log_noise, state):
        y = state[0]
        square, score = jnp.exp(2 * log_noise), _score(gen, log_noise)
        ways = jnp.eye(y.size, dtype=y.dtype)
        value, slopes = jax.vmap(lambda way: jax.jvp(score, (y,), (way,)), out_axes=(None, 0))(ways)
        return -square * value, -square * jnp.trace(slopes)

    def log_density(y, least):
        end, gain = runge_kutta(slope, (y, jnp.zeros((), y.dtype)), jnp.log(least), jnp.log(most), steps)
        return gain - 0.5 * jnp.sum(end**2) / (most**2 + gen.sigma_data**2)

    def one(y):
        return y.size + (log_density(y, noise) - log_density(y, noise / NARROWER)) / jnp.log(NARROWER)

    return jax.vmap(one)(x), x


@eqx.filter_jit
def _flipd(gen, x, noise, most, steps: int, key):
    return jax.lax.map(lambda y: flipd(gen, y, noise), x, batch_size=256), x


@eqx.filter_jit
def _normal(gen, x, noise, most, steps: int, key):
    d = x.shape[1]

    def one(item):
        y, key = item
        around = y + noise * jr.normal(key, (4 * d + SPARE, d), y.dtype)
        values = jnp.linalg.svd(jax.vmap(_score(gen, jnp.log(noise)))(around), compute_uv=False)
        return (d - 1 - jnp.argmax(values[:-1] - values[1:])).astype(y.dtype)

    return jax.lax.map(one, (x, jr.split(key, len(x))), batch_size=256), x


METHODS = {"likelihood": _likelihood, "flow": _flow, "flipd": _flipd, "normal": _normal}
"""(gen, x, noise, most, steps, key) -> (dimension, where it was read), by name."""


def _check(gen: AbstractGenerator, x, noise: float, most: float, steps: int):
    if jnp.ndim(x) != 2 or len(x) < 1:
        raise InputError(f"x must have shape (n, d), got {jnp.shape(x)}")
    if "score" not in gen.fields or gen.path.origin != "none":
        raise InputError(f"gen must have a score and a path without origin, it has {sorted(gen.fields)}")
    if not 0 < noise < most or steps < 1:
        raise InputError(f"noise must be positive and below most, and steps positive, got {noise}, {most} and {steps}")
    path = gen.path
    low, high = (float(jnp.exp(-path.log_snr(t))) for t in (path.t_max, path.t_min))
    if not low * (1 - 1e-3) <= noise < most <= high * (1 + 1e-3):
        raise InputError(
            f"noise and most must be noise ratios of the path, {low:.3g} to {high:.3g}, got {noise} and {most}"
        )
