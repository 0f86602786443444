"""Light Schrödinger bridge: the bridge between two laws with its potential as a mixture of Gaussians, no network.

The reference motion is dX = sqrt(eps) dW. Entropic transport with cost |x - y|^2 / 2 and weight eps has the plan

    pi(y | x) = exp(x.y / eps) v(y) / c(x),    v(y) = sum_k a_k N(y | r_k, eps S_k),
    c(x) = sum_k A_k(x),    log A_k(x) = log a_k + (x.S_k x + 2 r_k.x) / (2 eps),

and everything else follows in closed form: the plan is a mixture of N(r_k + S_k x, eps S_k) with weights A_k, and the
bridge's drift has no singularity at t = 0 or t = 1.   [Korotin, Gushchin & Burnaev, ICLR 2024]
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.generate.gaussian_mixture import Mixture, log_normals


class LightBridge(eqx.Module):
    """A Schrödinger bridge given by the mixture v; a law, from t = 0 (source) to t = 1 (target). One sample.

    `eps` is the volatility: between fixed ends the bridge has variance eps t (1 - t). `centres (k, d)` are r_k;
    `scales` are S_k, in units of eps: one number, one for each component `(k,)`, diagonals `(k, d)` or full matrices
    `(k, d, d)`; `weights (k,)` are a_k, equal if left out, of any sum: their common factor changes nothing.
    `origins (2, d)` are points near the middle of source and target (0 if left out): x and y above are measured from
    them, which is the same family of plans and keeps its digits for data far from 0.

    >>> bridge = LightBridge(jnp.array([[3.0], [-3.0]]), eps=0.5)
    >>> bridge.drift(1.0, jnp.array([2.0])).shape, bridge.conditional(jnp.zeros(1)).mean.tolist()
    ((1,), [0.0])

    It is a law with diffusion sqrt(eps): `integrate(bridge, x0, ts, method="euler_maruyama", dt=0.01, key=key)`.

    Raises:
        InputError: shapes that do not fit; eps or a scale not positive; weights negative or all zero; a number that is
            not finite.
    """

    log_weights: Float[Array, " k"]
    centres: Float[Array, "k d"]
    log_scales: Float[Array, "k d"]
    lower: Float[Array, "k d d"] | None
    eps: Float[Array, ""]
    origins: Float[Array, "2 d"]

    def __init__(self, centres: Any, scales: Any = 1.0, weights: Any = None, *, eps: Any, origins: Any = None):
        centres = jnp.asarray(centres, jnp.result_type(float))
        if centres.ndim != 2 or not centres.size:
            raise InputError(f"centres must have shape (components, dim), got {centres.shape}")
        k, d = centres.shape
        weights = jnp.ones(k, centres.dtype) if weights is None else jnp.asarray(weights, centres.dtype)
        if weights.shape != (k,) or bool((weights < 0).any()) or not float(weights.sum()) > 0:
            raise InputError(f"weights must be {k} numbers, none negative and not all zero, got {weights}")
        origins = jnp.zeros((2, d), centres.dtype) if origins is None else jnp.asarray(origins, centres.dtype)
        if origins.shape != (2, d):
            raise InputError(f"origins must have shape (2, {d}), one row for each end, got {origins.shape}")
        for name, values in (("centres", centres), ("weights", weights), ("origins", origins)):
            if not bool(jnp.isfinite(values).all()):
                raise InputError(f"{name} must be finite, got {values}")
        self.log_weights, self.centres, self.origins = jnp.log(weights), centres, origins
        self.log_scales, self.lower = _decompose(jnp.asarray(scales, centres.dtype), k, d)
        self.eps = jnp.asarray(check_eps(eps), centres.dtype)

    @property
    def components(self) -> int:
        return self.centres.shape[0]

    @property
    def dim(self) -> int:
        return self.centres.shape[1]

    @property
    def factors(self) -> Float[Array, "k d"] | Float[Array, "k d d"]:
        """F with S = F F': square roots, or lower triangles."""
        roots = jnp.exp(self.log_scales / 2)
        if self.lower is None:
            return roots
        return jnp.tril(self.lower, -1) + jax.vmap(jnp.diag)(roots)

    def log_potential(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """log v(y), the potential of the target side; see `light_bridge_loss`."""
        y = y - self.origins[1]
        terms = log_normals(y - self.centres, jnp.sqrt(self.eps) * self.factors)
        # seen from 0, exp(x.y / eps) has a part that depends on y alone
        return jax.nn.logsumexp(self.log_weights + terms) - self.origins[0] @ y / self.eps

    def log_normalizer(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """log c(x) = log of the integral of exp(x.y / eps) v(y) dy."""
        tilts = self._log_tilts(x - self.origins[0], self._spread(x - self.origins[0]))
        return jax.nn.logsumexp(tilts) + self.origins[1] @ x / self.eps

    def conditional(self, x: Float[Array, " d"]) -> Mixture:
        """pi(y | x), where the bridge from x ends."""
        x = x - self.origins[0]
        spread = self._spread(x)
        means = self.centres + spread + self.origins[1]
        return Mixture(self._log_tilts(x, spread), means, jnp.sqrt(self.eps) * self.factors)

    def sample(self, x: Float[Array, " d"], *, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One draw of pi(y | x)."""
        return self.conditional(x).sample(key=key)

    def sample_bridge(self, ts: Any, x: Float[Array, " d"], *, key: PRNGKeyArray) -> Float[Array, "frames d"]:
        """One path of the bridge from x, exact at all of `ts`: y ~ pi(y | x), then the Brownian bridge from x to y.

        `ts` `(frames,)` increases within [0, 1].

        Raises:
            InputError: times outside [0, 1] or not increasing.
        """
        ts = jnp.asarray(check_times(ts), x.dtype)
        key_end, key_noise = jr.split(key)
        y = self.sample(x, key=key_end)
        steps = jnp.diff(ts, prepend=0.0, append=1.0)
        motion = jnp.cumsum(jnp.sqrt(steps)[:, None] * jr.normal(key_noise, (len(steps), len(x)), x.dtype), 0)
        pinned = motion[:-1] - ts[:, None] * motion[-1]
        return x + ts[:, None] * (y - x) + jnp.sqrt(self.eps) * pinned

    def sample_at(self, t: Any, x: Float[Array, " d"], *, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One draw of the bridge from x at time t."""
        return self.sample_bridge(jnp.reshape(jnp.asarray(t, x.dtype), 1), x, key=key)[0]

    def drift(self, t: Any, x: Float[Array, " d"], args: Any = None) -> Float[Array, " d"]:
        """sum_k w_k(t, x) D_k^-1 ((S_k - 1) x + r_k) with D_k = 1 - t + t S_k; finite at every t in [0, 1].

        Full scales are diagonalised at each call, once for a whole batch; where two of their eigenvalues are equal the
        drift has no derivative by the scales.
        """
        source, target = self.origins
        log_share, pull = self._pulls(t, x - (1 - t) * source - t * target)
        return jax.nn.softmax(log_share) @ pull + target - source

    def diffusion(self, t: Any, x: Float[Array, " d"], args: Any = None) -> Float[Array, " d"]:
        """sqrt(eps) in every coordinate."""
        return jnp.full_like(x, 1) * jnp.sqrt(self.eps).astype(x.dtype)

    def recentred(self, origins: Float[Array, "2 d"]) -> "LightBridge":
        """The same bridge, its plan unchanged, measured from other origins."""
        move = origins - self.origins
        spread = self._spread(move[0])
        log_weights = self._log_tilts(move[0], spread)
        parts = (log_weights - log_weights.max(), self.centres + spread - move[1], origins)
        return eqx.tree_at(lambda b: (b.log_weights, b.centres, b.origins), self, parts)

    def _spread(self, x: Float[Array, " d"]) -> Float[Array, "k d"]:
        """S_k x."""
        if self.lower is None:
            return jnp.exp(self.log_scales) * x
        factors = self.factors
        return jnp.einsum("kij,kj->ki", factors, jnp.einsum("kij,i->kj", factors, x))

    def _axes(self) -> tuple[Array, Callable, Callable]:
        """Eigenvalues of S_k `(k, d)`, and rotation of `(k, d)` vectors into the eigenvectors' frames and back."""
        if self.lower is None:
            return jnp.exp(self.log_scales), lambda v: v, lambda v: v
        factors = self.factors
        scales, vectors = jnp.linalg.eigh(jnp.einsum("kia,kja->kij", factors, factors))
        into = functools.partial(jnp.einsum, "kij,ki->kj", vectors)
        return scales, into, functools.partial(jnp.einsum, "kij,kj->ki", vectors)

    def _log_tilts(self, x: Float[Array, " d"], spread: Float[Array, "k d"]) -> Float[Array, " k"]:
        """log A_k(x)."""
        return self.log_weights + (spread @ x + 2 * self.centres @ x) / (2 * self.eps)

    def _pulls(self, t: Any, x: Float[Array, " d"]) -> tuple[Float[Array, " k"], Float[Array, "k d"]]:
        """Log share and drift of each component; eps times the gradient of logsumexp(share) is the drift."""
        toward = self._spread(x) - x + self.centres
        scales, turn, back = self._axes()
        blend = 1 - t + t * scales
        pull, held = back(turn(toward) / blend), back(turn(self.centres) / blend)
        log_det = jnp.log(blend).sum(-1)
        work = pull @ x + held @ x - t * jnp.sum(self.centres * held, -1)
        return self.log_weights - log_det / 2 + work / (2 * self.eps), pull


def check_eps(eps: Any) -> Any:
    """A positive finite number.

    Raises:
        InputError: something else.
    """
    if isinstance(eps, Tracer):
        return eps
    if np.ndim(eps) != 0 or not (np.isfinite(eps) and eps > 0):
        raise InputError(f"eps must be a positive number, the volatility of the reference motion, got {eps}")
    return eps


def check_times(ts: Any) -> Any:
    """Times of a bridge.

    Raises:
        InputError: not of one axis, outside [0, 1] or not increasing.
    """
    if isinstance(ts, Tracer):
        return ts
    ts = np.asarray(ts)
    if ts.ndim != 1 or not len(ts) or not (np.diff(ts) > 0).all() or not (ts[0] >= 0 and ts[-1] <= 1):
        raise InputError(f"ts must increase within [0, 1], with shape (frames,), got {ts}")
    return ts


def _decompose(scales: Array, k: int, d: int) -> tuple[Array, Array | None]:
    """(log of the diagonal, strictly lower triangle) of F with S = F F', the diagonal squared."""
    if scales.ndim == 1:
        scales = scales[:, None]
    if scales.shape == (k, d, d):
        if not bool(jnp.allclose(scales, scales.mT, rtol=1e-4, atol=1e-6)):
            raise InputError("scales must be symmetric matrices")
        root = jnp.linalg.cholesky(scales)
        if not bool(jnp.isfinite(root).all()):
            raise InputError("scales must be positive definite matrices")
        return 2 * jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), jnp.tril(root, -1)
    if scales.ndim > 2 or (scales.ndim == 2 and scales.shape not in ((k, 1), (k, d))):
        raise InputError(f"scales must be one number or have shape {(k,)}, {(k, d)} or {(k, d, d)}, got {scales.shape}")
    if not bool(((scales > 0) & jnp.isfinite(scales)).all()):
        raise InputError(f"scales must be positive and finite, got {scales}")
    return jnp.broadcast_to(jnp.log(scales), (k, d)), None
