"""The Fokker-Planck regulariser: a denoising objective plus the squared residual of the generator's own equation.

    loss = base + weight E (R / rate)^2 / dim

With tau the time of an Ornstein-Uhlenbeck process of the same noise ratio, R / rate is tau R, the residual per unit of
log tau, and times are uniform in log tau: R itself grows like 1 / tau towards the data, where a plain mean over times
would drown the denoising loss. The potential must be right at the source, as `predicts="residual"` makes it: else its
error there is carried along by the flow and forgotten by noisy sampling, and a small residual is no small gap.

Reference: Lai et al. 2023; Deveney et al. 2025.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, Float

from kinema.errors import InputError
from kinema.generate.fokker_planck import DIVERGENCES, FORMS, fp_residual, log_time_rate, ou_time
from kinema.generate.generator import AbstractGenerator
from kinema.generate.objective.denoising import Denoising
from kinema.generate.objective.weighting import draw_times
from kinema.generate.path.path import Path


class LogUniformTime(eqx.Module):
    """log tau uniform, tau = log(1 + s^2 / a^2) / 2, between two noise ratios s / a; None is the path's own safe end.

    Raises:
        InputError: not 0 < least < most.
    """

    least: float | None = None
    most: float | None = None

    def __check_init__(self):
        low, high = self.least or 0.0, self.most or float("inf")
        if not 0 <= low < high or self.least == 0:
            raise InputError(f"noise ratios must be 0 < least < most, got least={self.least}, most={self.most}")

    def __call__(self, path: Path, quantile: Array) -> Array:
        most = jnp.exp(-path.log_snr(path.t_min)) if self.most is None else self.most
        least = jnp.exp(-path.log_snr(path.t_max)) if self.least is None else self.least
        high, low = jnp.log(ou_time(most)), jnp.log(ou_time(least))
        tau = jnp.exp(high + quantile * (low - high))
        return jnp.clip(path.time_of_log_snr(-0.5 * jnp.log(jnp.expm1(2 * tau))), path.t_min, path.t_max)


class FokkerPlanck(eqx.Module):
    """The objective `(generator, batch, key) -> (loss, metrics)`: `base` plus the squared residual.

    Residuals are taken at `points` points (as many as the batch has rows if None): half on the path, half normal with
    `broad` times the deviation of the path's marginal, where no data teach the score. `form="score"` takes grad R, for
    networks without a potential. The metrics add "residual", the root mean square of tau R / sqrt(dim) in nats. A
    weight of 1 closes most of the gap; much more costs quality.

    Raises:
        InputError: weight negative, points below 2, broad not positive, an unknown form or divergence; a batch without
            rows of data; see `fp_residual`.
    """

    base: Callable = Denoising(times=LogUniformTime())
    weight: Any = 1.0
    times: Callable = LogUniformTime()
    form: str = eqx.field(static=True, default="log_density")
    divergence: str = eqx.field(static=True, default="exact")
    probes: int = eqx.field(static=True, default=1)
    points: int | None = eqx.field(static=True, default=None)
    broad: float = eqx.field(static=True, default=1.5)

    def __check_init__(self):
        if not isinstance(self.weight, Tracer) and bool(jnp.any(jnp.asarray(self.weight) < 0)):
            raise InputError(f"weight must not be negative, got {self.weight}")
        if self.form not in FORMS:
            raise InputError(f"form must be one of {FORMS}, got {self.form!r}")
        if self.divergence not in DIVERGENCES:
            raise InputError(f"divergence must be one of {DIVERGENCES}, got {self.divergence!r}")
        if (self.points is not None and self.points < 2) or not self.broad > 0:
            raise InputError(
                f"points must be at least 2 and broad positive, got points={self.points}, broad={self.broad}"
            )

    def __call__(self, generator: AbstractGenerator, batch, key) -> tuple[Float[Array, ""], dict[str, Array]]:
        key_base, key_points = jr.split(key)
        loss, metrics = self.base(generator, batch, key_base)
        x1 = batch["x1"] if isinstance(batch, dict) else batch
        square = jnp.mean(self.residuals(generator, x1, key_points) ** 2)
        return loss + self.weight * square, {**metrics, "residual": jnp.sqrt(square)}

    def residuals(self, generator: AbstractGenerator, x1: Float[Array, "n ..."], key) -> Float[Array, "..."]:
        """R over the noise rate at random points, divided by the root of the dimension; grad R has the shape of x."""
        path, n = generator.path, self.points or len(x1)
        key_rows, key_times, key_order, key_noise, key_broad, key_probes = jr.split(key, 6)
        rows = x1[jr.randint(key_rows, (n,), 0, len(x1))]
        t = jr.permutation(key_order, draw_times(self.times, path, key_times, n))
        noise = jr.normal(key_broad, rows.shape, rows.dtype)

        def one(number, key_noise, key_probe, t, row, noise):
            a, _, s = path.coefficients(t)
            far = self.broad * jnp.sqrt((a * generator.sigma_data) ** 2 + s**2) * noise
            x = jnp.where(number % 2 == 0, path.perturb(key_noise, t, row).x, far)
            how = {"form": self.form, "divergence": self.divergence, "probes": self.probes}
            found = fp_residual(generator, t, x, key=key_probe, **how) / log_time_rate(path, t)
            return found / row.size**0.5 if self.form == "log_density" else found

        keys = jr.split(key_noise, n), jr.split(key_probes, n)
        return jax.vmap(one)(jnp.arange(n), *keys, t, rows, noise)
