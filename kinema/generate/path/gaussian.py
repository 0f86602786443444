"""Gaussian paths from pure noise: VP, sub-VP, VE, EDM, and the line and the quarter circle of flow matching.

Published with u = 1 - t (u = 0 data). With B(u) = b0 u + (b1 - b0) u^2 / 2:
VP a = exp(-B/2), s = sqrt(1 - exp(-B));  sub-VP the same a, s = 1 - exp(-B);  VE a = 1, s geometric in u.
Drift and diffusion of the published SDEs follow from a and s (`Path.rates`), so they are never typed twice.

Reference: Song et al. 2021 (VP, sub-VP, VE); Karras et al. 2022 (EDM); Lipman et al. 2023, Liu et al. 2023 (linear);
Albergo & Vanden-Eijnden 2023 (trig).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from kinema.errors import InputError
from kinema.generate.noise import NoiseLaw, Normal
from kinema.generate.path.path import Path


class VP(Path):
    """Variance preserving: a^2 + s^2 = 1, noise rate linear in u from `beta_min` to `beta_max`.

    Raises:
        InputError: not 0 < beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=0.0)
    t_max: float = eqx.field(static=True, default=1 - 1e-5)

    def __check_init__(self):
        _check_order("beta_min", self.beta_min, "beta_max", self.beta_max)

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        B = _integral(self, t)
        return jnp.exp(-0.5 * B), jnp.zeros_like(B), jnp.sqrt(-jnp.expm1(-B))

    def s_ds(self, t) -> Array:
        return -0.5 * jnp.exp(-_integral(self, t)) * _beta(self, t)

    def log_snr(self, t) -> Array:
        B = _integral(self, t)
        return -0.5 * B - 0.5 * jnp.log(-jnp.expm1(-B))

    def time_of_log_snr(self, level) -> Array:
        return _time_of_integral(self, jax.nn.softplus(-2 * jnp.asarray(level)))


class SubVP(Path):
    """Sub-VP: the a of VP with the smaller noise s = 1 - a^2.

    Raises:
        InputError: not 0 < beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=0.0)
    t_max: float = eqx.field(static=True, default=1 - 1e-5)

    def __check_init__(self):
        _check_order("beta_min", self.beta_min, "beta_max", self.beta_max)

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        B = _integral(self, t)
        return jnp.exp(-0.5 * B), jnp.zeros_like(B), -jnp.expm1(-B)

    def s_ds(self, t) -> Array:
        B = _integral(self, t)
        return jnp.expm1(-B) * jnp.exp(-B) * _beta(self, t)

    def log_snr(self, t) -> Array:
        B = _integral(self, t)
        return -0.5 * B - jnp.log(-jnp.expm1(-B))

    def time_of_log_snr(self, level) -> Array:
        return _time_of_integral(self, 2 * jnp.arcsinh(0.5 * jnp.exp(-jnp.asarray(level))))


class VE(Path):
    """Variance exploding: a = 1, s from `sigma_max` down to `sigma_min`, geometrically.

    `sigma_max` near the largest distance between two data points works; s is sigma_min, not 0, at the data end.

    Raises:
        InputError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=0.0)
    t_max: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _check_order("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        s = jnp.exp(-self.log_snr(t))
        return jnp.ones_like(s), jnp.zeros_like(s), s

    def log_snr(self, t) -> Array:
        u = 1 - _floating(t)
        return -jnp.log(self.sigma_min) - u * jnp.log(self.sigma_max / self.sigma_min)

    def time_of_log_snr(self, level) -> Array:
        return 1 + (jnp.asarray(level) + jnp.log(self.sigma_min)) / jnp.log(self.sigma_max / self.sigma_min)


class EDM(Path):
    """Karras et al.: a = 1 and s^(1/rho) linear in time, so uniform times are the published grid.

    Raises:
        InputError: not 0 < sigma_min < sigma_max, or rho < 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=0.0)
    t_max: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _check_order("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        if self.rho < 1:
            raise InputError(f"rho must be at least 1, got {self.rho}")

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        s = (high + _floating(t) * (low - high)) ** self.rho
        return jnp.ones_like(s), jnp.zeros_like(s), s

    def time_of_log_snr(self, level) -> Array:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (jnp.exp(-jnp.asarray(level) / self.rho) - high) / (low - high)


class Linear(Path):
    """The straight line of flow matching and rectified flow: a = t, s = 1 - t."""

    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=1e-5)
    t_max: float = eqx.field(static=True, default=1 - 1e-5)

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        t = _floating(t)
        return t, jnp.zeros_like(t), 1 - t

    def time_of_log_snr(self, level) -> Array:
        return jax.nn.sigmoid(jnp.asarray(level))


class Trig(Path):
    """The quarter circle: a = sin(pi t / 2), s = cos(pi t / 2), so a^2 + s^2 = 1 (one-sided trigonometric, cosine)."""

    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=1e-5)
    t_max: float = eqx.field(static=True, default=1 - 1e-5)

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        angle, rest = 0.5 * jnp.pi * _floating(t), 0.5 * jnp.pi * (1 - _floating(t))
        return jnp.sin(angle), jnp.zeros_like(angle), jnp.sin(rest)

    def rates(self, t) -> tuple[Array, Array, Array]:
        a, b, s = self.coefficients(t)
        return 0.5 * jnp.pi * s, b, -0.5 * jnp.pi * a

    def time_of_log_snr(self, level) -> Array:
        return jnp.arctan(jnp.exp(jnp.asarray(level))) * (2 / jnp.pi)


GAUSSIAN = {"vp": VP, "sub-vp": SubVP, "ve": VE, "edm": EDM, "linear": Linear, "trig": Trig}
"""Paths from normal noise to data, by name."""


def _floating(t) -> Array:
    return jnp.asarray(t, jnp.result_type(float) if not hasattr(t, "dtype") else None)


def _integral(path: VP | SubVP, t) -> Array:
    """B(u), the noise put in between data and u."""
    u = 1 - _floating(t)
    return u * (path.beta_min + 0.5 * (path.beta_max - path.beta_min) * u)


def _beta(path: VP | SubVP, t) -> Array:
    return path.beta_min + (path.beta_max - path.beta_min) * (1 - _floating(t))


def _time_of_integral(path: VP | SubVP, B) -> Array:
    """The root of B(u) = B in the form that does not cancel."""
    root = jnp.sqrt(path.beta_min**2 + 2 * (path.beta_max - path.beta_min) * B)
    return 1 - 2 * B / (path.beta_min + root)


def _check_order(low_name: str, low: float, high_name: str, high: float):
    if not 0 < low < high:
        raise InputError(f"{low_name} must be positive and below {high_name}, got {low_name}={low}, {high_name}={high}")
