"""Conditioning without retraining: known parts (inpainting, colourisation) and classifiers.

A known part y = Q x1 of the sample replaces that part of every data prediction, m <- m + Q^T (y - Q m). With a
stochastic plan the known part of the state then walks exactly as noise leaves y, x = a y + s z at every time, through
correctors too; with an ODE plan it keeps one z. A noise-conditional classifier moves the score:

    score <- score + scale grad log p(label | x_t),    m <- m + scale (s^2 / a) grad log p(label | x_t)

Both are biased: what the model thinks of y never weighs in. `PathWeighted` makes either exact.

Reference: Song et al. 2021 (score SDE, sections 5 and I); Dhariwal & Nichol 2021; Lugmayr et al. 2022.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.generate.fields import Moments
from kinema.steer.controller import Controller, Ledger, Particles, Scene


class Conditioning(Controller):
    """A controller that edits towards a condition and can say how likely the condition is.

    `log_likelihood` is what remains of the condition's likelihood given one particle, up to a constant: near it while
    sampling, exact at the data end. `PathWeighted` needs no more.
    """

    @abc.abstractmethod
    def log_likelihood(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene) -> Float[Array, ""]:
        """log p(condition | x at t); arguments as those of `edit`, `data` not yet edited."""


class Mask(eqx.Module):
    """The entries where `mask` is true."""

    mask: PyTree

    def check(self, like: PyTree):
        """Refuse samples of another shape.

        Raises:
            InputError: mask of another structure or shape than the sample.
        """
        _compare("mask", self.mask, like)

    def like(self, x: PyTree) -> PyTree:
        """Structure of the known values of a sample with that of x."""
        return x

    def replace(self, x: PyTree, value: PyTree) -> PyTree:
        """One sample with the known part put in."""
        return jax.tree.map(lambda mask, leaf, known: jnp.where(mask, known, leaf), self.mask, x, value)

    def count(self, value: PyTree) -> Array:
        """How many numbers are known."""
        return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, self.mask))


class Span(eqx.Module):
    """The coordinates Q x of the last axis, or of the whole flattened sample: Q `(k, size)` with orthonormal rows."""

    Q: Float[Array, "k size"]

    def check(self, like: PyTree):
        """Refuse samples that Q does not act on.

        Raises:
            InputError: not one array; neither its last axis nor its size is that of Q.
        """
        if not isinstance(like, jax.ShapeDtypeStruct):
            raise InputError(f"a projection acts on samples that are one array, got {jax.tree.structure(like)}")
        size = self.Q.shape[1]
        if size not in (like.shape[-1], like.size):
            raise InputError(
                f"Q has {size} columns; the sample of shape {like.shape} needs {like.shape[-1]} or {like.size}"
            )

    def like(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Structure of the known values of a sample with that of x."""
        k, size = self.Q.shape
        return jax.ShapeDtypeStruct((*x.shape[:-1], k) if size == x.shape[-1] else (k,), x.dtype)

    def replace(self, x: Array, value: Array) -> Array:
        """One sample with the known part put in."""
        rows = x if self.Q.shape[1] == x.shape[-1] else x.reshape(-1)
        return (rows + (value - rows @ self.Q.T) @ self.Q).reshape(x.shape)

    def count(self, value: Array) -> int:
        """How many numbers are known."""
        return value.size


class Replacement(Conditioning):
    """Replace the known part of every data prediction, and of the sample at last.

    `value` is known to all samples, or has a leading axis of one for each; in physical units.
    """

    view: Mask | Span
    value: PyTree

    def begin(self, particles: Particles, scene: Scene, ledger: Ledger) -> tuple[Particles, Ledger]:
        one = jax.eval_shape(lambda x: scene.decode(x), jax.tree.map(lambda leaf: _struct(leaf, 1), particles.state.x))
        self.view.check(one)
        wanted = self.view.like(one)
        values = jax.tree.map(jnp.asarray, self.value)
        shared = jax.tree.map(jnp.ndim, values) == jax.tree.map(lambda leaf: leaf.ndim, wanted)
        if not shared:
            for leaf in jax.tree.leaves(values):
                if leaf.shape[:1] != (particles.size,):
                    raise InputError(
                        f"value must be one for all or have a leading axis of {particles.size}, got shape {leaf.shape}"
                    )
        _compare("value", jax.tree.map(lambda leaf: _struct(leaf, int(not shared)), values), wanted)
        aux = jax.tree.map(
            lambda leaf, like: jnp.broadcast_to(leaf, (particles.size, *like.shape)).astype(like.dtype), values, wanted
        )
        return with_aux(particles, aux), ledger

    def edit(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        return self.view.replace(data, aux)

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        return jax.vmap(self.view.replace)(x, particles.aux), particles.log_weight, ledger

    def log_likelihood(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene) -> Float[Array, ""]:
        # As if data given x_t were normal with the variance that a prior of the generator's scale leaves.
        moments, prior = Moments.at(scene.generator.path, t), scene.generator.sigma_data**2
        variance = prior * moments.s**2 / (moments.a**2 * prior + moments.s**2)
        gap = jax.tree.map(jnp.subtract, scene.encode(self.view.replace(data, aux)), scene.encode(data))
        return -0.5 * _dot(gap, gap) / variance - 0.5 * self.view.count(aux) * jnp.log(2 * jnp.pi * variance)


class ClassifierGuidance(Conditioning):
    """Add `scale` grad_x log_prob(t, x) to the score; x one sample in physical units."""

    log_prob: Callable
    scale: float = 1.0

    def __check_init__(self):
        if not jnp.isfinite(self.scale):
            raise InputError(f"scale must be finite, got {self.scale}")

    def edit(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        moments = Moments.at(scene.generator.path, t)
        # Where a = 0 the state knows nothing of the data, and the gradient of a true classifier is 0.
        factor = self.scale * jnp.where(moments.a > 0, moments.s**2 / jnp.where(moments.a > 0, moments.a, 1), 0)
        slope = jax.grad(lambda y: self.log_prob(t, scene.decode(y)))(scene.encode(x))
        moved = jax.tree.map(lambda m, g: m + (factor * g).astype(m.dtype), scene.encode(data), slope)
        return scene.decode(moved)

    def price(self, particles: Particles, scene: Scene) -> tuple[Ledger, Ledger]:
        return Ledger.empty(), Ledger.empty().add(gradients=particles.size * scene.rows.micro_steps)

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        return x, particles.log_weight, ledger.add(gradients=particles.size * scene.rows.micro_steps)

    def log_likelihood(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene) -> Float[Array, ""]:
        return self.scale * self.log_prob(t, x)


def condition_on_mask(mask: PyTree, value: PyTree) -> Replacement:
    """Inpainting: the entries of `value` where `mask` is true are known. Other entries of `value` are never read.

    Example:
        >>> steer(gen, plan, condition_on_mask(mask, image), 16, key=key, shape=image.shape).x

    Raises:
        InputError: a mask that is not true or false; shapes other than the sample's, when sampling starts.
    """
    for leaf in jax.tree.leaves(mask):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.bool_):
            raise InputError(f"mask must be true or false, got {jnp.result_type(leaf)}")
    return Replacement(Mask(jax.tree.map(jnp.asarray, mask)), value)


def condition_on_projection(Q, value) -> Replacement:
    """Any orthonormal linear view: Q x = value, with Q `(k, size)` acting on the last axis or on the flattened sample.

    Colourisation: Q = [[1, 1, 1]] / sqrt(3) on the colours, value the grey image `(h, w, 1)` times sqrt(3). Low-pass:
    the first rows of a cosine transform.

    Raises:
        InputError: rows that are not orthonormal; shapes that do not fit the sample, when sampling starts.
    """
    Q = np.asarray(Q)
    if Q.ndim != 2:
        raise InputError(f"Q must be a matrix, got shape {Q.shape}")
    residual = np.abs(Q @ Q.T - np.eye(len(Q))).max()
    if not residual <= 1e-4:
        raise InputError(f"Q must have orthonormal rows, got |Q Q^T - I| = {residual:.3g}, at most 1e-4 is accepted")
    return Replacement(Span(jnp.asarray(Q, jnp.result_type(float))), value)


def guide_by_classifier(log_prob: Callable, scale: float = 1.0) -> ClassifierGuidance:
    """Guidance by a noise-conditional classifier: `log_prob(t, x)` is log p(label | x_t = x), differentiable in x.

    Raises:
        InputError: `scale` not finite.
    """
    return ClassifierGuidance(log_prob, scale)


def with_aux(particles: Particles, aux: PyTree) -> Particles:
    """Particles that keep `aux`, each its own row."""
    return eqx.tree_at(lambda p: p.aux, particles, aux, is_leaf=lambda leaf: leaf is None)


def _struct(leaf, drop: int) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array without its first `drop` axes."""
    return jax.ShapeDtypeStruct(leaf.shape[drop:], leaf.dtype)


def _compare(name: str, given: PyTree, like: PyTree):
    if jax.tree.structure(given) != jax.tree.structure(like):
        raise InputError(f"{name} must have the structure {jax.tree.structure(like)}, got {jax.tree.structure(given)}")
    for leaf, other in zip(jax.tree.leaves(given), jax.tree.leaves(like)):
        if leaf.shape != other.shape:
            raise InputError(f"{name} must have the shape {other.shape} of the sample's part, got {leaf.shape}")


def _dot(x: PyTree, y: PyTree) -> Array:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), x, y))
