"""A path that leaves and arrives at rest: a = t^2 (3 - 2 t), s = 1 - a."""

import equinox as eqx
import jax.numpy as jnp

from kinema.generate import Path
from kinema.generate.noise import NoiseLaw, Normal


class Ease(Path):
    """The straight line, walked slowly at both ends."""

    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=1e-3)
    t_max: float = eqx.field(static=True, default=1 - 1e-3)

    def coefficients(self, t):
        t = jnp.asarray(t, jnp.result_type(float))
        return t**2 * (3 - 2 * t), jnp.zeros_like(t), (1 - t) ** 2 * (1 + 2 * t)
