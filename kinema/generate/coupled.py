"""Exact generators between two Gaussian mixtures: the oracle of paths that start from a random endpoint.

For independent x1 ~ sum_i w_i N(mu_i, S_i) and x0 ~ sum_j u_j N(nu_j, T_j), x_t is a mixture over pairs (i, j) of mean
a mu_i + b nu_j and variance V = a^2 S_i + b^2 T_j + s^2, coordinate by coordinate. In each pair x1, x0 and z are normal
with x_t, so that their means given x_t follow from the gap g = x - a mu_i - b nu_j:

    x1: mu_i + a S_i g / V,    x0: nu_j + b T_j g / V,    z: s g / V
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from kinema.errors import InputError
from kinema.generate.fields import Heads, Moments
from kinema.generate.generator import AbstractGenerator
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.path.path import Path


class CoupledPosterior(AbstractGenerator):
    """The exact generator of a path from one Gaussian mixture, `starts`, to another, `ends`.

    Both are `MixturePosterior`s on any path, of which only the mixture counts; their covariances must be diagonal. The
    two outputs are the transport a' E[x1 | x] + b' E[x0 | x] and the noise.

    Raises:
        InputError: a path whose origin is not a random endpoint; full covariances; different dimensions.
    """

    path: Path
    starts: MixturePosterior
    ends: MixturePosterior
    predicts: tuple[str, str] = eqx.field(static=True, default=("transport", "noise"))
    sigma_data: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if self.path.origin != "endpoint":
            raise InputError(f"path must start from a random endpoint, got {type(self.path).__name__}")
        if self.starts.axes is not None or self.ends.axes is not None:
            raise InputError("covariances of starts and ends must be diagonal")
        if self.starts.means.shape[1] != self.ends.means.shape[1]:
            raise InputError(
                f"starts have dimension {self.starts.means.shape[1]}, ends {self.ends.means.shape[1]}; they must agree"
            )

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x: Float[Array, " d"], cond=None, x0=None) -> Heads:
        moments = Moments.at(self.path, t)
        gap, spread, log_share = self._pairs(x, moments)
        share = jax.nn.softmax(log_share, (0, 1))
        pull = gap / spread
        end = self.ends.means[:, None] + moments.a * self.ends.variances[:, None] * pull
        start = self.starts.means[None] + moments.b * self.starts.variances[None] * pull
        transport = moments.da * end + moments.db * start
        return Heads(*(jnp.einsum("ij,ijd->d", share, field) for field in (transport, moments.s * pull)))

    def log_prob(self, t, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density of x_t, nats."""
        return jax.nn.logsumexp(self._pairs(x, Moments.at(self.path, t))[2])

    def draw(self, key) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """One pair (x0, x1), independent."""
        key_start, key_end = jr.split(key)
        return self.starts.draw(key_start), self.ends.draw(key_end)

    def _pairs(self, x, moments: Moments):
        """Gap to every pair (ends, starts, d), its variance there, and the log of weight times density."""
        centres = moments.a * self.ends.means[:, None] + moments.b * self.starts.means[None]
        spread = moments.a**2 * self.ends.variances[:, None] + moments.b**2 * self.starts.variances[None] + moments.s**2
        gap = x - centres
        log_density = -0.5 * (gap**2 / spread + jnp.log(2 * jnp.pi * spread)).sum(-1)
        weights = jnp.log(self.ends.weights)[:, None] + jnp.log(self.starts.weights)[None]
        return gap, spread, weights + log_density
