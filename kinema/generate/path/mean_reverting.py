"""The mean-reverting path: from a known degraded sample x0 plus noise to the clean one.

    x_t = alpha x1 + (1 - alpha) x0 + s z,    s = std sqrt(1 - alpha^2)

is the law of dx = theta (x0 - x) du + std sqrt(2 theta) dW with u = 1 - t: alpha = exp(-int theta). So x - x0 moves on
a plain Gaussian path, which is all that solvers see. Schedules give I(u), the share of the whole decay done at u.

Reference: Luo et al. 2023 (IR-SDE); Li et al. 2025 (MRS).
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kinema.errors import InputError, choose
from kinema.generate.noise import NoiseLaw, Normal
from kinema.generate.path.path import Path

OFFSET = 0.008  # of the cosine schedule


def cosine(u) -> Array:
    """theta ~ 1 - cos^2(k (u + q)) / cos^2(k q), k = pi / (2 (1 + q)): slow at both ends."""
    return _cosine(u) / _cosine(jnp.ones_like(u))


def linear(u) -> Array:
    """theta ~ u."""
    return u**2


def constant(u) -> Array:
    """theta constant."""
    return u


SCHEDULES = {"cosine": cosine, "linear": linear, "constant": constant}


class MeanReverting(Path):
    """From x0 plus noise of standard deviation `std` to data: the origin x0 is the condition, as in restoration.

    `end` is what is left of the data at the source, alpha(0). `schedule` is a name, a function I(u) that rises from
    I(0) = 0 to I(1) = 1, or its values at equal steps of u: see `tabulated`.

    Raises:
        InputError: std not positive; end outside (0, 1); an unknown schedule; a table that does not rise to 1.
    """

    std: float = 50 / 255
    end: float = 0.005
    schedule: str | tuple[float, ...] | Callable = eqx.field(
        converter=lambda given: tuple(given) if isinstance(given, list) else given, default="cosine"
    )
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="condition")
    t_min: float = eqx.field(static=True, default=0.0)
    t_max: float = eqx.field(static=True, default=1 - 1e-3)

    def __check_init__(self):
        if not self.std > 0:
            raise InputError(f"std must be positive, got {self.std}")
        if not 0 < self.end < 1:
            raise InputError(f"end must lie in (0, 1), got {self.end}")
        if isinstance(self.schedule, str):
            choose(SCHEDULES, self.schedule, "schedule")
        if isinstance(self.schedule, tuple):
            _check_table(self.schedule)

    @classmethod
    def tabulated(cls, log_alpha, *, std: float = 50 / 255) -> "MeanReverting":
        """The path of a network trained on a table: `log_alpha (n,)` at n equal steps of u = 1 - t from 0 to 1.

        A table may begin below 0, as published ones do that count the first rate: the path then ends beside the data.

        Raises:
            InputError: fewer than 2 values; values that are not finite, do not fall or begin above 0.
        """
        values = np.asarray(log_alpha, np.float64)
        if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
            raise InputError(f"log_alpha must be a vector of at least 2 finite values, got shape {values.shape}")
        if values[0] > 0 or not (np.diff(values) < 0).all():
            raise InputError("log_alpha must begin at 0 or below and fall")
        return cls(std=std, end=float(np.exp(values[-1])), schedule=tuple((values / values[-1]).tolist()))

    def log_alpha(self, t) -> Array:
        u = 1 - jnp.asarray(t, jnp.result_type(float))
        if isinstance(self.schedule, tuple):
            done = jnp.interp(u, jnp.linspace(0.0, 1.0, len(self.schedule)), jnp.array(self.schedule))
        else:
            done = (SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule)(u)
        return jnp.log(self.end) * done

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        level = self.log_alpha(t)
        return jnp.exp(level), -jnp.expm1(level), self.std * jnp.sqrt(-jnp.expm1(2 * level))

    def s_ds(self, t) -> Array:
        da = self.rates(t)[0]
        return -(self.std**2) * jnp.exp(self.log_alpha(t)) * da


def _check_table(done: tuple[float, ...]):
    values = np.asarray(done, np.float64)
    if len(values) < 2 or values[0] < 0 or values[-1] != 1 or not (np.diff(values) > 0).all():
        raise InputError("a schedule's table must rise from 0 or above to 1; `tabulated` makes one of log alpha")


def _cosine(u) -> Array:
    """int_0^u theta, in the form that does not cancel: with w = k u, (w - sin w cos w) cos 2kq + sin^2 w sin 2kq."""
    k = jnp.pi / (2 * (1 + OFFSET))
    w = k * u
    odd = jnp.where(w < 0.3, _odd_part(jnp.minimum(w, 0.3)), w - jnp.sin(w) * jnp.cos(w))
    return (odd * jnp.cos(2 * k * OFFSET) + jnp.sin(w) ** 2 * jnp.sin(2 * k * OFFSET)) / (
        2 * k * jnp.cos(k * OFFSET) ** 2
    )


def _odd_part(w) -> Array:
    """w - sin w cos w by its series: (2 w)^3 / 12 (1 - (2w)^2 / 20 (1 - (2w)^2 / 42 (1 - (2w)^2 / 72)))."""
    square = 4 * w**2
    series = 1 - square / 20 * (1 - square / 42 * (1 - square / 72 * (1 - square / 110)))
    return 2 * w**3 / 3 * series
