"""The Path protocol: how data and source are joined.

    x_t = a(t) x1 + b(t) x0 + s(t) z,    t = 0 source, t = 1 data

x1 is data, x0 the *origin* (absent, a known condition, or a random endpoint) and z noise. Diffusion, flow matching,
bridges and mean reversion differ in three scalar functions of time and in nothing else.
"""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.generate.noise import NoiseLaw

ORIGINS = ("none", "condition", "endpoint")


class Noised(NamedTuple):
    """A point of the path with all that made it: x = a x1 + b x0 + s z at time t."""

    x: PyTree
    z: PyTree
    x1: PyTree
    x0: PyTree | None
    t: Float[Array, ""]


class Path(eqx.Module):
    """Coefficients and noise of x_t = a(t) x1 + b(t) x0 + s(t) z; everything else follows from them.

    `origin` says what x0 is: "none" (b = 0), "condition" (known when sampling) or "endpoint" (random, drawn as the
    start). `t_min` and `t_max` bound the times that are safe to train at in float32.
    """

    noise: eqx.AbstractVar[NoiseLaw]
    origin: eqx.AbstractVar[str]
    t_min: eqx.AbstractVar[float]
    t_max: eqx.AbstractVar[float]

    @abc.abstractmethod
    def coefficients(self, t) -> tuple[Array, Array, Array]:
        """(a, b, s) at time t."""

    def rates(self, t) -> tuple[Array, Array, Array]:
        """Time derivatives (da, db, ds)."""
        t = jnp.asarray(t, jnp.result_type(float))
        return jax.jvp(self.coefficients, (t,), (jnp.ones_like(t),))[1]

    def s_ds(self, t) -> Array:
        """s ds/dt; paths whose ds is infinite at an end give its finite limit here."""
        return self.coefficients(t)[2] * self.rates(t)[2]

    def log_snr(self, t) -> Array:
        """log(a / s), rising from source to data."""
        a, _, s = self.coefficients(t)
        return jnp.log(a) - jnp.log(s)

    def time_of_log_snr(self, level) -> Array:
        """The inverse of `log_snr`, by bisection to the last bit unless the path knows better."""
        level = jnp.asarray(level, jnp.result_type(float))

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            above = self.log_snr(middle) > level
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        low, high = jax.lax.fori_loop(0, 80, halve, (jnp.zeros_like(level), jnp.ones_like(level)))
        return 0.5 * (low + high)

    def signal(self, t) -> Array:
        """What a network is told of the time: `log_snr` held within +-12, so a trained network survives a change of
        schedule."""
        return jnp.clip(self.log_snr(t), -12.0, 12.0)

    @property
    def has_source(self) -> bool:
        """Whether a sample's start can be drawn; otherwise it begins at data."""
        return True

    def input_scale(self, t, sigma_data: float) -> Array:
        """What a network's x is multiplied by to be of about unit variance, for data and origins of deviation
        `sigma_data`."""
        a, b, s = self.coefficients(t)
        return jax.lax.rsqrt(sigma_data**2 * (a**2 + b**2) + s**2)

    def perturb(self, key, t, x1: PyTree, x0: PyTree | None = None) -> Noised:
        """Draw x_t given the data x1 (and the origin x0), one sample."""
        return self.join(t, x1, self.noise.sample(key, x1), x0)

    def join(self, t, x1: PyTree, z: PyTree, x0: PyTree | None = None) -> Noised:
        """x_t of given data, noise and origin."""
        a, b, s = self.coefficients(t)
        x = jax.tree.map(lambda data, noise: a * data + s * noise, x1, z)
        if self.check_origin(x0) is not None:
            x = jax.tree.map(lambda centred, start: centred + b * start, x, x0)
        return Noised(x, z, x1, x0, jnp.asarray(t))

    def sample_source(self, key, like: PyTree, x0: PyTree | None = None) -> PyTree:
        """Draw x at t = 0: s(0) z + (a(0) + b(0)) x0, as if the data were x0."""
        a, b, s = self.coefficients(jnp.zeros(()))
        x = jax.tree.map(lambda noise: s * noise, self.noise.sample(key, like))
        if self.check_origin(x0) is not None:
            x = jax.tree.map(lambda centred, start: centred + (a + b) * start, x, x0)
        return x

    def source_log_prob(self, x: PyTree, x0: PyTree | None = None) -> Float[Array, ""]:
        """Log density of `sample_source`, nats."""
        a, b, s = self.coefficients(jnp.zeros(()))
        if self.check_origin(x0) is not None:
            x = jax.tree.map(lambda full, start: full - (a + b) * start, x, x0)
        size = sum(leaf.size for leaf in jax.tree.leaves(x))
        return self.noise.log_prob(jax.tree.map(lambda leaf: leaf / s, x)) - size * jnp.log(s)

    def check_origin(self, x0: PyTree | None) -> PyTree | None:
        """x0, if it fits the path.

        Raises:
            InputError: x0 missing on a path with an origin, or given on one without.
        """
        if self.origin == "none" and x0 is not None:
            raise InputError(f"x0 was given but {type(self).__name__} has no origin; leave x0 out")
        if self.origin != "none" and x0 is None:
            raise InputError(f"x0 is missing: {type(self).__name__} starts from a {self.origin}")
        return x0


def in_float64(function, argument) -> tuple[np.ndarray, ...]:
    """Evaluate a path's function of time in double precision on the host, whatever the caller's precision.

    `function` is a method of a path or a `jax.tree_util.Partial`: trees, so that one compiled program serves all calls
    on paths of one kind. A vector is padded to a power of two, so that grids of many lengths share it as well.
    """
    argument = np.asarray(argument, np.float64)
    size = len(argument) if argument.ndim else 0
    if size:
        padding = 2 ** max(4, int(size - 1).bit_length()) - size
        argument = np.pad(argument, (0, padding), mode="edge")
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        values = _compiled(function, jnp.asarray(argument))
        values = [np.asarray(value, np.float64) for value in (values if isinstance(values, tuple) else (values,))]
    return tuple(value[:size] if size else value for value in values)


@eqx.filter_jit
def _compiled(function, argument):
    return function(argument)
