"""Latent-variable models with a likelihood: X = f(Z) + s e, with Z of few dimensions.

    log p(x) = log ∫ N(x | f(z), s^2 I) dP(z)

By quadrature over z in one or two dimensions, which leaves no variational gap, and from below by importance weights in
more. The law of interest is that of f(Z), so samples carry no noise unless it is asked for.

Reference: Chae, Kim, Kim & Lin, 2023; Burda, Grosse & Salakhutdinov, 2016; Tucker et al., 2019.
"""

import abc
import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.generate.codec import Codec

NODES = {1: 256, 2: 48}  # along each axis, by dimension of the latent
REACH = 6.0  # standard deviations that the grid of a normal latent covers
NARROW = 1e-6  # standard deviation below which a density is degenerate in single precision


class Latent(eqx.Module):
    """The law of z, as a map of v ~ N(0, I): importance sampling works in v, whatever z is.

    Raises:
        InputError: dim is not a positive integer.
    """

    dim: eqx.AbstractVar[int]

    @abc.abstractmethod
    def push(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """z of a standard normal v."""

    @abc.abstractmethod
    def nodes(self, count: int, shift: Float[Array, " d"]) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
        """Nodes and log weights of the grid of `count` cells an axis; `shift` in [0, 1) is the place in every cell."""

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One draw of z."""
        return self.push(jr.normal(key, (self.dim,)))


class Uniform(Latent):
    """z uniform in the unit cube.

    >>> z, log_weights = Uniform(1).nodes(4, jnp.array([0.5]))
    >>> z[:, 0].tolist()
    [0.125, 0.375, 0.625, 0.875]
    """

    dim: int = eqx.field(static=True)

    def __check_init__(self):
        _check_dim(self.dim)

    def push(self, v):
        return jax.scipy.stats.norm.cdf(v)

    def nodes(self, count, shift):
        z = _grid(count, shift)
        return z, jnp.full(len(z), -jnp.log(float(len(z))))


class Normal(Latent):
    """z standard normal; its grid covers six standard deviations."""

    dim: int = eqx.field(static=True)

    def __check_init__(self):
        _check_dim(self.dim)

    def push(self, v):
        return v

    def nodes(self, count, shift):
        z = REACH * (2 * _grid(count, shift) - 1)
        return z, jax.nn.log_softmax(-0.5 * jnp.sum(z**2, -1))


class LatentModel(eqx.Module):
    """X = decode(f(Z) + s e), f the `generator` `(d,) -> (D,)`, s = std_min + exp(log_std) in encoded units.

    `codec` maps data to the units in which s is one number for all coordinates; None is the identity. `encoder`
    `(D,) -> (mean, log_std)`, each `(d,)`, proposes v of `latent.push` for importance weights.

    >>> line = LatentModel(lambda z: jnp.stack([z[0], 2 * z[0]]), Uniform(1))
    >>> line.sample(key=jr.key(0)).shape
    (2,)

    Raises:
        InputError: std_min negative.
    """

    generator: Callable
    latent: Latent
    log_std: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.log(0.5))
    std_min: float = eqx.field(static=True, default=1e-4)
    codec: Codec | None = None
    encoder: Callable | None = None

    def __check_init__(self):
        if not self.std_min >= 0:
            raise InputError(f"std_min must be 0 or positive, got {self.std_min}")

    @property
    def std(self) -> Float[Array, ""]:
        """s, in encoded units."""
        return self.std_min + jnp.exp(self.log_std)

    def sample(self, *, key: PRNGKeyArray, density: bool = False) -> Float[Array, " D"]:
        """One draw of f(Z), or with `density` of f(Z) + s e, the law whose density `log_prob` gives."""
        key_latent, key_noise = jr.split(key)
        x = self.generator(self.latent.sample(key=key_latent))
        if density:
            x = x + self.std * jr.normal(key_noise, x.shape, x.dtype)
        return self.decode(x)

    def log_prob(self, x: Float[Array, " D"], *, quadrature: int | None = None) -> Float[Array, ""]:
        """Log density of one sample, nats, by a grid of `quadrature` nodes an axis (by default 256, or 48 x 48).

        Right where the nodes lie closer on the curve than s; see `diagnose`. Warns (RuntimeWarning) where s has fallen
        to its floor: such a value says how thin the set is, not how likely x.

        Raises:
            InputError: a latent of more than two dimensions, for which there is `log_prob_bound`.
        """
        warn_if_degenerate(self)
        return self.log_density(self.encode(x), *self.curve(quadrature)) - self._log_scale()

    def log_prob_bound(self, x: Float[Array, " D"], *, key: PRNGKeyArray, samples: int = 16) -> Float[Array, ""]:
        """Importance-weighted lower bound of the log density of one sample, nats; its mean rises with `samples`.

        One sample is the evidence lower bound. The gradient is doubly reparameterised: that of the encoder does not
        fade as the bound tightens.

        Raises:
            InputError: no encoder; samples < 1.
        """
        if self.encoder is None:
            raise InputError("log_prob_bound needs an encoder: give LatentModel(..., encoder=...)")
        if samples < 1:
            raise InputError(f"samples must be at least 1, got {samples}")
        x = self.encode(x)
        mean, log_std = self.encoder(x)
        v = mean + jnp.exp(log_std) * jr.normal(key, (samples, self.latent.dim))
        proposal = jax.lax.stop_gradient((mean, log_std))

        def log_weights(v):
            gaps = x - jax.vmap(lambda one: self.generator(self.latent.push(one)))(v)
            log_joint = _log_normal(v) + _log_normal(gaps / self.std) - x.size * jnp.log(self.std)
            return log_joint - _log_normal((v - proposal[0]) / jnp.exp(proposal[1])) + proposal[1].sum()

        weights = jax.nn.softmax(jax.lax.stop_gradient(log_weights(v)))[:, None]
        v = jax.lax.stop_gradient(v) + weights * (v - jax.lax.stop_gradient(v))
        return jax.nn.logsumexp(log_weights(v)) - jnp.log(float(samples)) - self._log_scale()

    def encode(self, x: Float[Array, " D"]) -> Float[Array, " D"]:
        """x in the units of the generator."""
        return x if self.codec is None else jax.lax.stop_gradient(self.codec).encode(x)

    def decode(self, x: Float[Array, " D"]) -> Float[Array, " D"]:
        """What the generator made, in the units of the data."""
        return x if self.codec is None else jax.lax.stop_gradient(self.codec).decode(x)

    def curve(
        self, quadrature: int | None = None, shift: Float[Array, " d"] | None = None
    ) -> tuple[Float[Array, "m D"], Float[Array, " m"]]:
        """f at the nodes of the quadrature, and their log weights. `shift` in [0, 1) moves them within their cells.

        Raises:
            InputError: more than two dimensions; fewer than two nodes.
        """
        dim = self.latent.dim
        if dim not in NODES:
            raise InputError(
                f"quadrature serves latents of 1 or 2 dimensions, got {dim}; give an encoder and use importance "
                "weights (log_prob_bound)"
            )
        count = NODES[dim] if quadrature is None else quadrature
        if count < 2:
            raise InputError(f"quadrature must be at least 2 nodes an axis, got {count}")
        z, log_weights = self.latent.nodes(count, jnp.full(dim, 0.5) if shift is None else shift)
        return jax.vmap(self.generator)(z), log_weights

    def log_density(
        self, x: Float[Array, " D"], curve: Float[Array, "m D"], log_weights: Float[Array, " m"]
    ) -> Float[Array, ""]:
        """log sum_j w_j N(x | curve_j, s^2 I) of an encoded x; under vmap the squares are one product of matrices."""
        return jax.nn.logsumexp(self.log_joint(x, curve, log_weights))

    def log_joint(
        self, x: Float[Array, " D"], curve: Float[Array, "m D"], log_weights: Float[Array, " m"]
    ) -> Float[Array, " m"]:
        """log w_j N(x | curve_j, s^2 I) of an encoded x."""
        square = jnp.maximum(x @ x + jnp.sum(curve**2, -1) - 2 * curve @ x, 0)
        constant = x.size * (jnp.log(self.std) + 0.5 * jnp.log(2 * jnp.pi))
        return log_weights - square / (2 * self.std**2) - constant

    def _log_scale(self) -> Float[Array, ""]:
        return jnp.zeros(()) if self.codec is None else jnp.log(jax.lax.stop_gradient(self.codec).std).sum()


class Diagnosis(NamedTuple):
    """How a fit by quadrature went, in encoded units.

    `std` is the model's s: close to the noise that was added, the set is learnt. `spacing` is the median distance of
    neighbouring nodes on the set, which must be below s. `dead` is the share of nodes that carry less than a tenth of
    their part of the data; many dead nodes mean a bad optimum.
    """

    std: float
    spacing: float
    dead: float


def diagnose(model: LatentModel, data: Float[Array, "n D"], *, quadrature: int | None = None) -> Diagnosis:
    """Noise, node spacing and dead nodes of a model on data.

    Raises:
        InputError: a latent of more than two dimensions.
    """
    curve, log_weights = model.curve(quadrature)
    dim = model.latent.dim
    grid = curve.reshape(*[round(len(curve) ** (1 / dim))] * dim, -1)
    steps = jnp.concatenate([jnp.linalg.norm(jnp.diff(grid, axis=axis), axis=-1).ravel() for axis in range(dim)])
    shares = jax.vmap(lambda x: jax.nn.softmax(model.log_joint(model.encode(x), curve, log_weights)))(data).mean(0)
    dead = jnp.sum(jnp.where(shares < 0.1 * jnp.exp(log_weights), jnp.exp(log_weights), 0))
    return Diagnosis(float(model.std), float(jnp.median(steps)), float(dead))


def with_codec(model: LatentModel, codec: Codec | None) -> LatentModel:
    """The model between other units of data."""
    return eqx.tree_at(lambda m: m.codec, model, codec, is_leaf=lambda leaf: leaf is None)


def warn_if_degenerate(model: LatentModel) -> None:
    """Warn (RuntimeWarning) if s is known, not traced, and sits at its floor."""
    if isinstance(model.log_std, Tracer):
        return
    std = float(model.std)
    if std <= max(2 * model.std_min, NARROW):
        warnings.warn(
            f"the likelihood is degenerate: s = {std:.3g} sits at std_min = {model.std_min:g}; add InstanceNoise",
            RuntimeWarning,
            stacklevel=3,
        )


def _grid(count: int, shift: Float[Array, " d"]) -> Float[Array, "m d"]:
    """Points of the unit cube, one in every cell."""
    axes = (jnp.arange(count)[:, None] + shift) / count
    return jnp.stack(jnp.meshgrid(*axes.T, indexing="ij"), -1).reshape(-1, len(shift))


def _log_normal(v: Float[Array, "... d"]) -> Float[Array, "..."]:
    return -0.5 * jnp.sum(v**2 + jnp.log(2 * jnp.pi), -1)


def _check_dim(dim: int) -> None:
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise InputError(f"dim must be a positive integer, got {dim!r}")
