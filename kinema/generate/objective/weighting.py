"""Weights of the denoising loss by name, and the laws of training times.

The loss is w(t) |m(x_t) - x1|^2 in units of data. Every published weighting is such a w:

| name       | equals                                                | w, with kappa = s / a        |
| data       | plain data prediction                                 | 1                            |
| noise      | the "simple" loss |e - z|^2                           | 1 / kappa^2                  |
| velocity   | flow matching |v - v_t|^2                             | (a log_snr')^2               |
| residual   | the preconditioned loss of EDM                        | 1 / kappa^2 + 1 / sigma_data^2 |
| likelihood | the bound on log-likelihood, g^2 |score gap|^2        | 2 log_snr' / kappa^2         |
| min-snr    | noise with its weight held below 5                    | min(1 / kappa^2, 5)          |

Reference: Ho et al. 2020; Song et al. 2021; Karras et al. 2022; Hang et al. 2023; Lipman et al. 2023.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from kinema.errors import InputError, choose
from kinema.generate.fields import Moments
from kinema.generate.path.path import Path


def data(moments: Moments, sigma_data: float) -> Array:
    return jnp.ones_like(moments.a)


def noise(moments: Moments, sigma_data: float) -> Array:
    return (moments.a / moments.s) ** 2


def velocity(moments: Moments, sigma_data: float) -> Array:
    return (moments.da - moments.a * moments.s_ds / moments.s**2) ** 2


def residual(moments: Moments, sigma_data: float) -> Array:
    return (moments.a / moments.s) ** 2 + 1 / sigma_data**2


def likelihood(moments: Moments, sigma_data: float) -> Array:
    rate = moments.da / moments.a - moments.s_ds / moments.s**2
    return 2 * rate * (moments.a / moments.s) ** 2


def min_snr(moments: Moments, sigma_data: float) -> Array:
    return jnp.minimum((moments.a / moments.s) ** 2, 5.0)


WEIGHTINGS: dict[str, Callable[[Moments, float], Array]] = {
    "data": data,
    "noise": noise,
    "velocity": velocity,
    "residual": residual,
    "likelihood": likelihood,
    "min-snr": min_snr,
}
"""(moments, sigma_data) -> w(t), by name; the module's table says what each equals."""


class Uniform(eqx.Module):
    """Times uniform between the path's safe ends."""

    def __call__(self, path: Path, quantile: Array) -> Array:
        return path.t_min + (path.t_max - path.t_min) * quantile


class LogitNormal(eqx.Module):
    """t = sigmoid(N(mean, std)): most of the work in the middle (Esser et al. 2024)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, path: Path, quantile: Array) -> Array:
        return _inside(path, jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(quantile)))


class LogNormalNoise(eqx.Module):
    """log(s / a) ~ N(mean, std): the training law of EDM (Karras et al. 2022)."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, path: Path, quantile: Array) -> Array:
        level = -(self.mean + self.std * jax.scipy.special.ndtri(quantile))
        return _inside(path, path.time_of_log_snr(level))


TIMES = {"uniform": Uniform(), "logit-normal": LogitNormal(), "log-normal-noise": LogNormalNoise()}
"""(path, quantile) -> t, laws of training times by name."""


def independent(key, n: int) -> Float[Array, " n"]:
    """Uniform and independent."""
    return jr.uniform(key, (n,))


def antithetic(key, n: int) -> Float[Array, " n"]:
    """In pairs that add up to 1."""
    half = jr.uniform(key, (-(-n // 2),))
    return jnp.concatenate([half, 1 - half])[:n]


def stratified(key, n: int) -> Float[Array, " n"]:
    """One in each of n equal parts, in order: the mean of a batch with less variance."""
    return (jnp.arange(n) + jr.uniform(key, (n,))) / n


QUANTILES = {"independent": independent, "antithetic": antithetic, "stratified": stratified}
"""(key, n) -> n quantiles in (0, 1), ways to draw the times of a batch by name."""


def draw_times(times: Callable, path: Path, key, n: int, quantiles: str = "stratified") -> Float[Array, " n"]:
    """n times of the law `times`."""
    return times(path, jnp.clip(QUANTILES[quantiles](key, n), 1e-6, 1 - 1e-6))


def named_weighting(weight: str | Callable) -> Callable[[Moments, float], Array]:
    """A weighting by name, or the function (moments, sigma_data) -> w itself."""
    return choose(WEIGHTINGS, weight, "weighting") if isinstance(weight, str) else weight


def named_times(times: str | Callable) -> Callable:
    """A law of times by name, or the function (path, quantile) -> t itself."""
    return choose(TIMES, times, "law of times") if isinstance(times, str) else times


def capped(weight: str | Callable, highest: float) -> Callable[[Moments, float], Array]:
    """A weighting held below `highest`."""
    if not highest > 0:
        raise InputError(f"highest must be positive, got {highest}")
    function = named_weighting(weight)
    return lambda moments, sigma_data: jnp.minimum(function(moments, sigma_data), highest)


def _inside(path: Path, t: Array) -> Array:
    return jnp.clip(t, path.t_min, path.t_max)
