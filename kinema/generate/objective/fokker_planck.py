"""The Fokker-Planck regulariser: a denoising objective plus the squared residual of the generator's own equation.

    loss = base + weight E (R / rate)^2 / dim

R over `noise_rate` is the residual per unit of log noise variance, and times are uniform in that logarithm: R itself
grows like 1 / time towards the data, where a plain mean over times would drown the denoising loss. The potential must
be right at the source (`predicts="residual"` makes it so): else its error there is carried along by the flow and
forgotten by noisy sampling, and a small residual does not mean a small gap.

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
from kinema.generate.fokker_planck import DIVERGENCES, FORMS, fp_residual, noise_rate
from kinema.generate.generator import AbstractGenerator
from kinema.generate.objective.denoising import Denoising
from kinema.generate.objective.weighting import stratified_times
from kinema.generate.path.path import Path


class LogUniformNoise(eqx.Module):
    """log(s / a) uniform between two noise ratios; None is the path's own safe end.

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
        low = path.log_snr(path.t_min) if self.most is None else -jnp.log(self.most)
        high = path.log_snr(path.t_max) if self.least is None else -jnp.log(self.least)
        return jnp.clip(path.time_of_log_snr(low + quantile * (high - low)), path.t_min, path.t_max)


class FokkerPlanck(eqx.Module):
    """The objective `(generator, batch, key) -> (loss, metrics)`: `base` plus the squared residual.

    Residuals are taken at `points` points (as many as the batch has rows if None): half on the path, half normal with
    `broad` times the deviation of the path's marginal, where no data teach the score. `form="score"` takes grad R, for
    networks without a potential. The metrics add "residual", its root mean square in nats (per unit of log noise
    variance). A weight of 1 closes most of the gap; much more costs quality.

    Raises:
        InputError: weight negative, points below 2, broad not positive, an unknown form or divergence; a batch without
            rows of data; see `fp_residual`.
    """

    base: Callable = Denoising(times=LogUniformNoise())
    weight: Any = 1.0
    times: Callable = LogUniformNoise()
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
        t = jr.permutation(key_order, stratified_times(self.times, path, key_times, n))
        noise = jr.normal(key_broad, rows.shape, rows.dtype)

        def one(number, key_noise, key_probe, t, row, noise):
            a, _, s = path.coefficients(t)
            far = self.broad * jnp.sqrt((a * generator.sigma_data) ** 2 + s**2) * noise
            x = jnp.where(number % 2 == 0, path.perturb(key_noise, t, row).x, far)
            how = {"form": self.form, "divergence": self.divergence, "probes": self.probes}
            found = fp_residual(generator, t, x, key=key_probe, **how) / noise_rate(path, t)
            return found / row.size**0.5 if self.form == "log_density" else found

        keys = jr.split(key_noise, n), jr.split(key_probes, n)
        return jax.vmap(one)(jnp.arange(n), *keys, t, rows, noise)

