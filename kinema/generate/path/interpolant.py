"""Interpolants: paths that join two data sets, a known pair, or a data set with itself.

    x_t = a(t) x1 + b(t) x0 + gamma(t) z,    a(0) = b(1) = 0, a(1) = b(0) = 1, gamma = 0 at both ends

gamma is given by its square, whose derivative is finite where that of a square root is not.

Reference: Albergo, Boffi, Vanden-Eijnden 2023 (stochastic interpolants); Albergo & Vanden-Eijnden 2023.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from kinema.errors import InputError, choose
from kinema.generate.noise import NoiseLaw, Normal
from kinema.generate.path.path import Path, in_float64

SHARPNESS = 10.0  # of the sigmoid bump


def _sqrt(t):
    return t * (1 - t)


def _quadratic(t):
    return (t * (1 - t)) ** 2


def _sine(t):
    return jnp.sin(jnp.pi * t) ** 4


def _sigmoid(t):
    def bump(u):
        return jax.nn.sigmoid(SHARPNESS * (u - 0.5) + 1) - jax.nn.sigmoid(SHARPNESS * (u - 0.5) - 1)

    return (bump(t) - bump(jnp.zeros_like(t))) ** 2


def _none(t):
    return jnp.zeros_like(t)


NOISES = {"sqrt": _sqrt, "quadratic": _quadratic, "sine": _sine, "sigmoid": _sigmoid, "none": _none}
"""gamma^2 by the name of gamma: sqrt(t (1 - t)), t (1 - t), sin^2(pi t), a difference of sigmoids, 0."""


def _linear(t, square):
    return t, 1 - t


def _trig(t, square):
    size = jnp.sqrt(1 - square)
    return size * jnp.sin(jnp.pi * t / 2), size * jnp.cos(jnp.pi * t / 2)


def _encode_decode(t, square):
    half = jnp.cos(jnp.pi * t) ** 2
    return jnp.where(t > 0.5, half, 0.0), jnp.where(t < 0.5, half, 0.0)


SCHEDULES = {"linear": _linear, "trig": _trig, "encode-decode": _encode_decode}
"""(a, b) of (t, gamma^2); "trig" makes a^2 + b^2 + gamma^2 = 1."""


class _Joining(Path):
    """What paths share whose log-SNR does not rise from end to end: the network is told logit(t) instead."""

    @abc.abstractmethod
    def noise_square(self, t) -> Array:
        """gamma^2."""

    def s_ds(self, t) -> Array:
        t = jnp.asarray(t, jnp.result_type(float))
        return 0.5 * jax.jvp(self.noise_square, (t,), (jnp.ones_like(t),))[1]

    def signal(self, t) -> Array:
        t = jnp.asarray(t, jnp.result_type(float))
        return jnp.clip(jnp.log(t) - jnp.log1p(-t), -12.0, 12.0)


class Interpolant(_Joining):
    """Two-sided: x0 is drawn from a data set of its own and not known to the network, which needs two outputs.

    `schedule` is "linear", "trig", "encode-decode" (use gamma "sine") or a function (t, gamma^2) -> (a, b); `gamma` is
    "sqrt", "quadratic", "sine", "sigmoid", "none" or a function of t, whose values are multiplied by `scale`. With
    gamma "sqrt" and the linear schedule, `scale` sigma is the bridge of Brownian motion of that volatility.

    Raises:
        InputError: unknown names; a, b or gamma wrong at an end, or gamma negative between; `scale` not positive.
    """

    schedule: str | Callable = "linear"
    gamma: str | Callable = "sqrt"
    scale: float = 1.0
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="endpoint")
    t_min: float = eqx.field(static=True, default=1e-3)
    t_max: float = eqx.field(static=True, default=1 - 1e-3)

    def __check_init__(self):
        _check_gamma(self)
        if isinstance(self.schedule, str):
            choose(SCHEDULES, self.schedule, "schedule")
        a, b, _ = in_float64(self.coefficients, [0.0, 1.0])
        for name, value, wanted in (("a(0)", a[0], 0), ("a(1)", a[1], 1), ("b(0)", b[0], 1), ("b(1)", b[1], 0)):
            if not abs(value - wanted) < 1e-6:
                raise InputError(f"schedule must give {name} = {wanted}, got {value:g}")

    def noise_square(self, t) -> Array:
        return _gamma_square(self, t)

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        t = jnp.asarray(t, jnp.result_type(float))
        square = self.noise_square(t)
        schedule = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        return *schedule(t, square), jnp.sqrt(square)


class Mirror(_Joining):
    """Data to itself through noise: x_t = x1 + gamma(t) z. Networks should predict the noise.

    Sampling starts at data: give it as `start`.

    Raises:
        InputError: an unknown gamma; gamma not 0 at an end or negative between; `scale` not positive.
    """

    gamma: str | Callable = "sqrt"
    scale: float = 1.0
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=1e-3)
    t_max: float = eqx.field(static=True, default=1 - 1e-3)

    def __check_init__(self):
        _check_gamma(self)

    @property
    def has_source(self) -> bool:
        return False

    def noise_square(self, t) -> Array:
        return _gamma_square(self, t)

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        t = jnp.asarray(t, jnp.result_type(float))
        return jnp.ones_like(t), jnp.zeros_like(t), jnp.sqrt(self.noise_square(t))


class Bridge(Path):
    """The Brownian bridge between a known start x0 and data: a = t, b = 1 - t, s = scale sqrt(t (1 - t)).

    Raises:
        InputError: `scale` not positive.
    """

    scale: float = 1.0
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="condition")
    t_min: float = eqx.field(static=True, default=1e-3)
    t_max: float = eqx.field(static=True, default=1 - 1e-3)

    def __check_init__(self):
        if not self.scale > 0:
            raise InputError(f"scale must be positive, got {self.scale}")

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        t = jnp.asarray(t, jnp.result_type(float))
        return t, 1 - t, self.scale * jnp.sqrt(t * (1 - t))

    def s_ds(self, t) -> Array:
        return self.scale**2 * (0.5 - jnp.asarray(t, jnp.result_type(float)))

    def log_snr(self, t) -> Array:
        t = jnp.asarray(t, jnp.result_type(float))
        return 0.5 * (jnp.log(t) - jnp.log1p(-t)) - jnp.log(self.scale)

    def time_of_log_snr(self, level) -> Array:
        return jax.nn.sigmoid(2 * (jnp.asarray(level) + jnp.log(self.scale)))


def _gamma_square(path: Interpolant | Mirror, t) -> Array:
    t = jnp.asarray(t, jnp.result_type(float))
    if isinstance(path.gamma, str):
        return path.scale**2 * NOISES[path.gamma](t)
    return (path.scale * path.gamma(t)) ** 2


def _wide(gamma: Callable, t) -> Array:
    """gamma(t), one value a time even where it is constant."""
    return jnp.broadcast_to(gamma(t), t.shape)


def _check_gamma(path: Interpolant | Mirror):
    if isinstance(path.gamma, str):
        choose(NOISES, path.gamma, "gamma")
    if not path.scale > 0:
        raise InputError(f"scale must be positive, got {path.scale}")
    gamma = path.gamma
    if not isinstance(gamma, str):
        times = np.linspace(0, 1, 65)
        (values,) = in_float64(Partial(_wide, gamma), times)
        if not (np.abs(values[[0, -1]]) < 1e-6).all():
            raise InputError(f"gamma must vanish at t=0 and t=1, got {values[0]:g} and {values[-1]:g}")
        if not (values[1:-1] >= 0).all():
            i = int(np.argmax(~(values >= 0)))
            raise InputError(f"gamma must not be negative, got {values[i]:g} at t={times[i]:g}")
