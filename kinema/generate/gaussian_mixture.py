"""One mixture of Gaussians with exact moments, and the Bures-Wasserstein distance of two Gaussians.

W2^2(N(m, C), N(n, D)) = |m - n|^2 + tr C + tr D - 2 tr (C^1/2 D C^1/2)^1/2
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray


class Mixture(eqx.Module):
    """sum_k w_k N(mean_k, F_k F_k'), w = softmax(logits).

    `factors` are standard deviations `(k, d)`, or lower triangles `(k, d, d)`.

    >>> two = Mixture(jnp.zeros(2), jnp.array([[-1.0], [3.0]]), jnp.ones((2, 1)))
    >>> two.mean.tolist(), two.cov.tolist()
    ([1.0], [[5.0]])
    """

    logits: Float[Array, " k"]
    means: Float[Array, "k d"]
    factors: Float[Array, "k d"] | Float[Array, "k d d"]

    @property
    def weights(self) -> Float[Array, " k"]:
        return jax.nn.softmax(self.logits)

    @property
    def mean(self) -> Float[Array, " d"]:
        return self.weights @ self.means

    @property
    def cov(self) -> Float[Array, "d d"]:
        """Within the components and between them."""
        gap = self.means - self.mean
        between = jnp.einsum("k,ki,kj->ij", self.weights, gap, gap)
        if self.factors.ndim == 2:
            return between + jnp.diag(self.weights @ self.factors**2)
        return between + jnp.einsum("k,kia,kja->ij", self.weights, self.factors, self.factors)

    def log_prob(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density, nats."""
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + log_normals(y - self.means, self.factors))

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One draw; only the component that was chosen is computed."""
        key_which, key_noise = jr.split(key)
        which = jr.categorical(key_which, self.logits)
        noise = jr.normal(key_noise, self.means.shape[1:], self.means.dtype)
        factor = self.factors[which]
        return self.means[which] + (factor * noise if factor.ndim == 1 else factor @ noise)


def log_normals(gap: Float[Array, "k d"], factors: Float[Array, "k d"] | Float[Array, "k d d"]) -> Float[Array, " k"]:
    """log N(gap_k | 0, F_k F_k')."""
    if factors.ndim == 2:
        white, diagonal = gap / factors, factors
    else:
        white = solve_triangular(factors, gap[..., None], lower=True)[..., 0]
        diagonal = jnp.diagonal(factors, axis1=-2, axis2=-1)
    return -jnp.sum(0.5 * white**2 + jnp.log(diagonal) + 0.5 * jnp.log(2 * jnp.pi), -1)


def bures_wasserstein(
    mean: Float[Array, " d"], cov: Float[Array, "d d"], other_mean: Float[Array, " d"], other_cov: Float[Array, "d d"]
) -> Float[Array, ""]:
    """Squared Wasserstein-2 distance of two Gaussians.

    Of singular covariances too. Reference: Gelbrich, 1990.
    """
    root = _root(cov)
    cross = jnp.linalg.eigvalsh(root @ other_cov @ root)
    overlap = jnp.sum(jnp.sqrt(jnp.maximum(cross, 0)))
    # the trace part cancels: rounding must not make it negative
    shape = jnp.maximum(jnp.trace(cov) + jnp.trace(other_cov) - 2 * overlap, 0)
    return jnp.sum((mean - other_mean) ** 2) + shape


def _root(cov: Float[Array, "d d"]) -> Float[Array, "d d"]:
    values, vectors = jnp.linalg.eigh(cov)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
