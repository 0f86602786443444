"""Exact generators for mixtures of Gaussians and point masses: the oracle of tests and a teaching tool.

Under x = a x1 + b x0 + s z with x1 ~ sum_k w_k N(mu_k, C_k), the posterior mean of data is

    E[x1 | x] = sum_k p_k(x) (mu_k + a C_k (a^2 C_k + s^2)^-1 (y - a mu_k)),   y = x - b x0.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.generate.fields import Heads, Moments
from kinema.generate.generator import AbstractGenerator, centre
from kinema.generate.path.path import Path


class MixturePosterior(AbstractGenerator):
    """The exact generator of a Gaussian mixture on a path whose origin is absent or known.

    `means (k, d)`; `weights (k,)`, equal if left out; `covs` one variance, one per component `(k,)`, diagonals
    `(k, d)` or full matrices `(k, d, d)`; 0 makes point masses. On a path of other noise law only point masses have a
    posterior in closed form.

    Raises:
        InputError: shapes that do not fit; weights negative or all zero; covariances not positive semi-definite;
            covariances with a noise law that is not normal.
    """

    path: Path
    weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    axes: Float[Array, "k d d"] | None
    predicts: str | tuple[str, str] = eqx.field(static=True, default="data")
    sigma_data: float = eqx.field(static=True, default=1.0)

    def __init__(self, path: Path, means, covs=0.0, weights=None):
        means = jnp.asarray(means, jnp.result_type(float))
        if means.ndim != 2:
            raise InputError(f"means must have shape (components, dim), got {means.shape}")
        k, d = means.shape
        weights = jnp.full(k, 1 / k) if weights is None else jnp.asarray(weights, means.dtype)
        if weights.shape != (k,) or bool((weights < 0).any()) or not float(weights.sum()) > 0:
            raise InputError(f"weights must be {k} numbers, none negative and not all zero, got {weights}")
        covs = jnp.asarray(covs, means.dtype)
        axes = None
        if covs.shape == (k, d, d):
            covs, axes = jnp.linalg.eigh(covs)
        elif covs.ndim == 1:
            covs = covs[:, None]
        if covs.ndim > 2 or (covs.ndim == 2 and covs.shape not in ((k, 1), (k, d))):
            raise InputError(
                f"covs must be one variance, or have shape {(k,)}, {(k, d)} or {(k, d, d)}, got {covs.shape}"
            )
        if bool((covs < -1e-6).any()):
            raise InputError("covs must be positive semi-definite")
        if not path.noise.gaussian and bool((covs > 0).any()):
            raise InputError("covs must be 0 (point masses) on a path whose noise is not normal")
        self.path, self.weights, self.means, self.axes = path, weights / weights.sum(), means, axes
        self.variances = jnp.broadcast_to(jnp.maximum(covs, 0), (k, d))
        self.predicts, self.sigma_data = "data" if path.noise.gaussian else ("data", "score"), 1.0

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x: Float[Array, " d"], cond=None, x0=None) -> PyTree:
        moments = Moments.at(self.path, t)
        gap, spread, log_share = self._components(centre(self.path, x, moments.b, x0), moments)
        share = jax.nn.softmax(log_share)
        if not self.path.noise.gaussian:
            score = jax.vmap(self.path.noise.score)(gap / moments.s) / moments.s
            return Heads(share @ self.means, share @ score)
        pull = moments.a * self.variances / jnp.where(spread > 0, spread, 1.0) * gap
        if self.axes is not None:
            pull = jnp.einsum("kij,kj->ki", self.axes, pull)
        return share @ (self.means + pull)

    def log_prob(self, t, x: Float[Array, " d"], x0=None) -> Float[Array, ""]:
        """Log density of x_t, nats."""
        moments = Moments.at(self.path, t)
        _, _, log_share = self._components(centre(self.path, x, moments.b, x0), moments)
        return jax.nn.logsumexp(log_share)

    def draw(self, key) -> Float[Array, " d"]:
        """One sample of the data law."""
        key_which, key_noise = jr.split(key)
        k = jr.choice(key_which, len(self.weights), p=self.weights)
        step = jnp.sqrt(self.variances[k]) * jr.normal(key_noise, self.means.shape[1:])
        return self.means[k] + (step if self.axes is None else self.axes[k] @ step)

    def _components(self, y, moments: Moments):
        """Gap to each component in its own axes, its variance there, and log w_k p_k(y)."""
        gap = y - moments.a * self.means
        if self.axes is not None:
            gap = jnp.einsum("kij,ki->kj", self.axes, gap)
        spread = moments.a**2 * self.variances + moments.s**2
        if self.path.noise.gaussian:
            terms = -0.5 * (gap**2 / spread + jnp.log(2 * jnp.pi * spread))
            return gap, spread, jnp.log(self.weights) + terms.sum(-1)
        log_density = jax.vmap(self.path.noise.log_prob)(gap / moments.s)
        return gap, spread, jnp.log(self.weights) + log_density - gap.shape[-1] * jnp.log(moments.s)
