"""Is a field a gradient, and if not, does it matter: gauge freedom of scores.

Every square-integrable field is grad phi + r with div(p r) = 0, the two orthogonal in L2(p). Samples and densities by
flow or noise are exact if grad phi is the score, whatever r, the *gauge*, is; what is read off the field at a point
(tangent space, dimension, density by one evaluation) is not. Only grad phi - score does harm, and by parts it is seen
without the score, against test functions h:

    E (field - score) . grad h = E [field . grad h + lap h]

Reference: Horvat & Pfister 2024.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from kinema.errors import InputError
from kinema.generate.generator import AbstractGenerator
from kinema.generate.path.path import Path

Field = AbstractGenerator | Callable
CHUNK_NUMBERS = 2**22  # numbers in one block of gradients of features
MOST_EXACT = 64  # dimensions up to which a whole Jacobian is made


class RandomFourier(eqx.Module):
    """Test functions cos(w . x + b), w normal with deviation 1 / scale: x `(d,)` to `(m,)`."""

    frequencies: Float[Array, "m d"]
    phases: Float[Array, " m"]

    def __init__(self, dim: int, m: int = 256, *, scale: float = 1.0, key):
        if dim < 1 or m < 1 or not scale > 0:
            raise InputError(f"dim, m and scale must be positive, got {dim}, {m} and {scale}")
        key_frequencies, key_phases = jr.split(key)
        self.frequencies = jr.normal(key_frequencies, (m, dim)) / scale
        self.phases = 2 * jnp.pi * jr.uniform(key_phases, (m,))

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " m"]:
        return jnp.cos(self.frequencies @ x + self.phases)


class GaugeReport(NamedTuple):
    """Mean squares of the error of a field. `harmful` is |grad phi - score|^2 as far as the features see it, without
    bias, so it may be negative where there is none; `total` is |field - score|^2 and `share` their ratio, NaN without a
    `score`; `rank` features were independent."""

    harmful: Float[Array, ""]
    total: Float[Array, ""]
    share: Float[Array, ""]
    rank: Array


class Projection(eqx.Module):
    """The gradient part of a field: `potential(x)`, and its gradient when called."""

    basis: Callable
    coefficients: Float[Array, " m"]

    def potential(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return self.coefficients @ self.basis(x)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        return jax.grad(self.potential)(x)


def asymmetry(field: Field, x: Float[Array, "n d"], t=None, *, key=None, probes: int | str = 8) -> Float[Array, ""]:
    """A = E |J - J^T|^2 / (4 E |J|^2) over the rows of x: 0 only for a gradient, 1 for a field of rotations alone.

    `field` is a function of one sample, or a generator, of which the score at time t is taken. With `probes` random
    directions at each row one product with J and one with J^T are made, no Jacobian; "exact" makes it whole.

    >>> turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> float(asymmetry(lambda x: turn @ x - x, jnp.ones((4, 2)), probes="exact"))
    0.5

    Raises:
        InputError: probes neither a positive number nor "exact"; a number without a key; "exact" above 64 dimensions; a
            field that does not return a vector like x; a generator without t or without a score.
    """
    field = _field(field, x, t)
    if probes == "exact":
        if x.shape[1] > MOST_EXACT:
            raise InputError(
                f"probes='exact' makes a Jacobian of {x.shape[1]} rows, at most {MOST_EXACT}; give a number"
            )
        return _exact_asymmetry(field, x)
    if isinstance(probes, str) or probes < 1:
        raise InputError(f"probes must be a positive number or 'exact', got {probes!r}")
    if key is None:
        raise InputError("random probes need key")
    return _asymmetry(field, x, jr.rademacher(key, (len(x), probes, x.shape[1]), x.dtype))


def gauge_error(
    field: Field,
    samples: Float[Array, "n d"],
    t=None,
    *,
    basis: Callable,
    ridge: float = 1e-6,
    score: Callable | None = None,
) -> GaugeReport:
    """The harmful part of a field's error, from samples of p_t and test functions `basis(x) -> (m,)`.

    The squared norm of grad phi - score on the span of the features' gradients, from two halves of the samples (the
    plain form has a floor of m / n of the field's variance). Directions of the Gram matrix below `ridge` of its largest
    eigenvalue are left out. `RandomFourier(d, 256, scale=...)`, of a scale near the data's details, is a good basis.

    Raises:
        InputError: fewer samples than twice the features; ridge not positive; as `asymmetry`.
    """
    chosen = _field(field, samples, t)
    m = _check_basis(basis, samples, ridge)
    if len(samples) < 2 * m:
        raise InputError(f"samples must be at least twice the features, got {len(samples)} for {m} features")
    half = len(samples) // 2
    gram, first = _moments(chosen, basis, samples[:half])
    other_gram, second = _moments(chosen, basis, samples[half : 2 * half])
    values, axes = jnp.linalg.eigh(0.5 * (gram + other_gram))
    kept = values > ridge * values[-1]
    harmful = jnp.sum(jnp.where(kept, (axes.T @ first) * (axes.T @ second) / jnp.where(kept, values, 1.0), 0.0))
    total = jnp.nan * harmful if score is None else _mean_square(chosen, score, samples)
    return GaugeReport(harmful, total, harmful / total, kept.sum())


def project_conservative(
    field: Field, samples: Float[Array, "n d"], t=None, *, basis: Callable, ridge: float = 1e-6
) -> Projection:
    """The gradient nearest to the field in L2(p), linear in `basis(x) -> (m,)`: minimises E|grad phi - field|^2.

    Raises:
        InputError: fewer samples than twice the features; ridge not positive; as `asymmetry`.
    """
    chosen = _field(field, samples, t)
    m = _check_basis(basis, samples, ridge)
    if len(samples) < 2 * m:
        raise InputError(f"samples must be at least twice the features, got {len(samples)} for {m} features")
    gram, along = _moments(chosen, basis, samples, by_parts=False)
    values, axes = jnp.linalg.eigh(gram)
    kept = values > ridge * values[-1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)
    return Projection(basis, axes @ (inverse * (axes.T @ along)))


def gauge_field(score: Callable, turn: Any) -> Callable:
    """r_i = sum_j (d_j K_ij + K_ij s_j) of an antisymmetric K: a field that changes no marginal, div(p r) = 0.

    `score` and `turn` are functions of one sample; `turn` may be a constant matrix.

    Raises:
        InputError: a constant K that is not antisymmetric.
    """
    if not callable(turn):
        matrix = jnp.asarray(turn)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not bool(jnp.allclose(matrix, -matrix.T)):
            raise InputError(f"turn must be an antisymmetric matrix, got {matrix}")
        return lambda x: matrix @ score(x)
    return lambda x: jnp.einsum("ijj->i", jax.jacfwd(turn)(x)) + turn(x) @ score(x)


class Gauged(AbstractGenerator):
    """A generator with `gauge(t, x) -> array like x` added to its score."""

    generator: AbstractGenerator
    gauge: Callable
    path: Path
    predicts: str = eqx.field(static=True, default="score")
    sigma_data: float = eqx.field(static=True, default=1.0)

    def __init__(self, generator: AbstractGenerator, gauge: Callable):
        if "score" not in generator.fields:
            raise InputError(f"generator must have a score, it has {sorted(generator.fields)}")
        self.generator, self.gauge, self.path = generator, gauge, generator.path
        self.predicts, self.sigma_data = "score", generator.sigma_data

    @property
    def calls(self) -> int:
        return self.generator.calls

    def raw(self, t, x, cond=None, x0=None):
        return self.generator(t, x, cond, x0=x0).score + self.gauge(t, x)


class _Score(eqx.Module):
    """The score of a generator at one time, as a function of x alone."""

    generator: AbstractGenerator
    t: Array

    def __call__(self, x: Array) -> Array:
        return jnp.asarray(self.generator(self.t, x).score)


def _field(field: Field, x, t) -> Callable:
    if jnp.ndim(x) != 2:
        raise InputError(f"samples must have shape (n, d), got {jnp.shape(x)}")
    if isinstance(field, AbstractGenerator):
        if t is None or "score" not in field.fields:
            raise InputError(f"a generator needs a time t and a score, got t={t} and {sorted(field.fields)}")
        s = field.path.coefficients(t)[2]
        if not bool(s > 0):
            raise InputError(f"t must be a time with noise, got t={t} where s=0")
        field = _Score(field, jnp.asarray(t, x.dtype))
    found = jax.eval_shape(field, x[0])
    if not hasattr(found, "shape") or found.shape != x.shape[1:]:
        raise InputError(f"field must return a vector like x, of shape {x.shape[1:]}, got {found}")
    return field


def _check_basis(basis: Callable, samples, ridge: float) -> int:
    if not ridge > 0:
        raise InputError(f"ridge must be positive, got {ridge}")
    found = jax.eval_shape(basis, samples[0])
    if not hasattr(found, "shape") or len(found.shape) != 1:
        raise InputError(f"basis must return a vector of features, got {found}")
    return found.shape[0]


@eqx.filter_jit
def _exact_asymmetry(field, x):
    jacobians = jax.lax.map(jax.jacfwd(field), x, batch_size=1024)
    odd = jacobians - jnp.swapaxes(jacobians, 1, 2)
    return jnp.sum(odd**2) / (4 * jnp.sum(jacobians**2))


@eqx.filter_jit
def _asymmetry(field, x, directions):
    def one(item):
        point, ways = item
        _, back = jax.vjp(field, point)

        def along(way):
            ahead, behind = jax.jvp(field, (point,), (way,))[1], back(way)[0]
            return jnp.sum((ahead - behind) ** 2), 2 * jnp.sum(ahead**2 + behind**2)

        return jax.vmap(along)(ways)

    odd, whole = jax.lax.map(one, (x, directions), batch_size=1024)
    return odd.sum() / whole.sum()


@eqx.filter_jit
def _moments(field, basis, samples, by_parts: bool = True):
    """Gram matrix E[grad h . grad h] and E[field . grad h (+ lap h)], summed in chunks."""
    n, d = samples.shape
    m = jax.eval_shape(basis, samples[0]).shape[0]
    rows = max(1, min(n, CHUNK_NUMBERS // (m * d)))
    padded = jnp.concatenate([samples, jnp.broadcast_to(samples[:1], (-n % rows, d))]).reshape(-1, rows, d)
    weights = (jnp.arange(padded.shape[0] * rows) < n).astype(samples.dtype).reshape(-1, rows)

    def one(x):
        slopes, curves = jax.jacfwd(basis)(x), 0.0
        if by_parts:

            def second(way):
                return jax.jvp(lambda y: jax.jvp(basis, (y,), (way,))[1], (x,), (way,))[1]

            curves = jax.vmap(second)(jnp.eye(d, dtype=x.dtype)).sum(0)
        return slopes, slopes @ field(x) + curves

    def body(sums, chunk):
        points, weight = chunk
        slopes, along = jax.vmap(one)(points)
        gram = jnp.einsum("rid,rjd->ij", slopes * weight[:, None, None], slopes)
        return (sums[0] + gram, sums[1] + weight @ along), None

    zeros = jnp.zeros((m, m), samples.dtype), jnp.zeros(m, samples.dtype)
    (gram, along), _ = jax.lax.scan(body, zeros, (padded, weights))
    return gram / n, along / n


@eqx.filter_jit
def _mean_square(field, score, samples):
    return jnp.mean(jax.lax.map(lambda x: jnp.sum((field(x) - score(x)) ** 2), samples, batch_size=4096))
