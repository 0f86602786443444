"""One of several paths, chosen by a number: the same formulas, and one compiled program that serves them all."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kinema.errors import InputError
from kinema.generate.noise import NoiseLaw
from kinema.generate.path import Path


class OneOf(Path):
    """`paths[which]`; a program traced with it holds the formulas of all, and runs those of one.

    >>> from kinema.generate import VE, VP
    >>> a, b, s = OneOf((VP(), VE()), 1).coefficients(1.0)
    >>> float(a), round(float(s), 3)
    (1.0, 0.01)

    Raises:
        InputError: `which` is no index of `paths`; paths whose origin or law of noise differs.
    """

    paths: tuple[Path, ...]
    which: Int[Array, ""]
    noise: NoiseLaw
    origin: str = eqx.field(static=True)

    def __init__(self, paths: tuple[Path, ...], which: int):
        if not 0 <= which < len(paths):
            raise InputError(f"which must be in 0 .. {len(paths) - 1}, got {which}")
        self.paths, self.which = paths, jnp.asarray(which)
        self.noise, self.origin = paths[0].noise, paths[0].origin
        if any((path.noise, path.origin) != (self.noise, self.origin) for path in paths):
            raise InputError("paths must have one origin and one law of noise")

    @property
    def t_min(self) -> Any:
        return jnp.array([path.t_min for path in self.paths])[self.which]

    @property
    def t_max(self) -> Any:
        return jnp.array([path.t_max for path in self.paths])[self.which]

    def coefficients(self, t) -> tuple[Array, Array, Array]:
        return jax.lax.switch(self.which, [path.coefficients for path in self.paths], jnp.asarray(t))

    def rates(self, t) -> tuple[Array, Array, Array]:
        return jax.lax.switch(self.which, [path.rates for path in self.paths], jnp.asarray(t))

    def s_ds(self, t) -> Array:
        return jax.lax.switch(self.which, [path.s_ds for path in self.paths], jnp.asarray(t))

    def log_snr(self, t) -> Array:
        return jax.lax.switch(self.which, [path.log_snr for path in self.paths], jnp.asarray(t))

    def time_of_log_snr(self, level) -> Array:
        return jax.lax.switch(self.which, [path.time_of_log_snr for path in self.paths], jnp.asarray(level))

    def signal(self, t) -> Array:
        return jax.lax.switch(self.which, [path.signal for path in self.paths], jnp.asarray(t))
