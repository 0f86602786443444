"""Radial projection: no momentum along weights whose length the loss does not see, around any optimizer.

    d <- d - ŵ <ŵ, d>,  ŵ = w / |w|        where max over rows of |<g, w>| / |g| |w| < delta / sqrt(length of a row)
    d <- d + ρ λ w                         ρ = wd_ratio there, 1 elsewhere

A weight in front of a normalisation is scale-invariant: its gradient g is orthogonal to it, every step lengthens it,
and the step that counts, η / |w|², shrinks; with momentum, much faster. The rows are the channels of a leaf or, where
these do not pass, the whole leaf.   [Heo, Chun, Oh, Han, Yun, Kim, Uh & Ha 2021]
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from kinema.errors import InputError
from kinema.learn.optim.checks import demand, real_leaves, with_params
from kinema.learn.optim.masks import Mask, leaf_flags, spread
from kinema.motion import trees

Axis = int | PyTree | Callable[[str, Any], int | None]


def radial_projection(
    inner: optax.GradientTransformation,
    *,
    delta: Any = 0.1,
    wd_ratio: Any = 0.1,
    weight_decay: Any = 0.0,
    decay_scale: Any = 1.0,
    channel_axis: Axis = 0,
    mask: Mask = None,
    eps: Any = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, its directions without their part along scale-invariant weights; the learning rate comes after it.

    >>> import jax.numpy as jnp, optax
    >>> from kinema.learn.optim import radial_projection
    >>> rule = optax.chain(radial_projection(optax.scale_by_lion()), optax.scale_by_learning_rate(0.1))
    >>> w = jnp.array([[3.0, 4.0]])
    >>> updates, _ = rule.update(jnp.array([[-0.8, 0.6]]), rule.init(w), w)
    >>> [round(float(step), 3) for step in updates[0]]
    [0.112, -0.084]

    The test is on the gradient that comes in, for each leaf of two axes or more. The decay `weight_decay * decay_scale`
    is added behind the projection, which would undo it; `mask` says which leaves decay (see `leaf_flags`).
    `channel_axis` counts the output channels: 0 for Equinox, -1 for Flax; or a tree of numbers, or a function
    `(name, leaf) -> int | None`, None for a leaf that is never projected. The state is that of `inner`.
    `optax.inject_hyperparams` needs `static_args="channel_axis"`.

    Raises:
        InputError: delta or eps not positive, wd_ratio outside [0, 1], decay below 0; at `init`, a leaf that is not
            real or has no such axis; at `update`, no params.
    """
    demand("delta", delta, lambda v: v > 0, "positive")
    demand("wd_ratio", wd_ratio, lambda v: 0 <= v <= 1, "in [0, 1]")
    demand("weight_decay", weight_decay, lambda v: v >= 0, ">= 0")
    demand("decay_scale", decay_scale, lambda v: v >= 0, ">= 0")
    demand("eps", eps, lambda v: v > 0, "positive")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        real_leaves("radial_projection", params)
        _axes(channel_axis, params)
        leaf_flags(mask, params)
        return inner.init(params)

    def update(updates, state, params=None, **extra):
        params = with_params("radial_projection", params)
        directions, state = inner.update(updates, state, params, **extra)
        decays = iter(leaf_flags(mask, params))
        axes = iter(_axes(channel_axis, params))

        def leaf(d, g, w):
            decay = weight_decay * decay_scale if next(decays) else 0.0
            view = _View(g, w, next(axes), delta, eps)
            return view.without_radial(d, decay, wd_ratio)

        return jax.tree.map(leaf, directions, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def scale_invariance(
    grads: PyTree, params: PyTree, *, delta: float = 0.1, channel_axis: Axis = 0, eps: float = 1e-8
) -> PyTree:
    """What the projection takes each leaf for: 1 where every channel is scale-invariant, 2 the leaf as a whole, else 0.

    >>> import jax.numpy as jnp
    >>> from kinema.learn.optim import scale_invariance
    >>> w = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> [int(scale_invariance(g, w)) for g in (w[::-1], w * jnp.array([[1.0], [-1.0]]), w)]
    [1, 2, 0]
    """
    axes = iter(_axes(channel_axis, params))
    return jax.tree.map(lambda g, w: _View(g, w, next(axes), delta, eps).kind(), grads, params)


class EffectiveStep(NamedTuple):
    """Trees of numbers, one a leaf: |Δw| / |w|, and the angle between w and w + Δw in radians."""

    relative: PyTree
    angle: PyTree


def effective_step(params: PyTree, updates: PyTree) -> EffectiveStep:
    """How far a step goes for weights whose length does not matter; 0 for a leaf that is zero.

    >>> import jax.numpy as jnp
    >>> from kinema.learn.optim import effective_step
    >>> step = effective_step(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    >>> round(float(step.relative), 3), round(float(step.angle), 3)
    (1.0, 0.785)
    """

    def relative(w, dw):
        size = _norm(w)
        return _norm(dw) / jnp.where(size > 0, size, jnp.inf)

    def angle(w, dw):
        size = _norm(w)
        unit = _wide(w) / jnp.where(size > 0, size, jnp.inf)
        along = _dot(unit, dw)
        return jnp.arctan2(_norm(_wide(dw) - along * unit), size + along) * (size > 0)

    return EffectiveStep(jax.tree.map(relative, params, updates), jax.tree.map(angle, params, updates))


class _View:
    """A gradient and a weight by rows: their products, made once, serve the channels and, summed, the whole leaf."""

    def __init__(self, g: Array, w: Array, axis: int | None, delta: Any, eps: Any):
        self.w, self.axis, self.eps = w, axis, eps
        if axis is None:
            return
        gw, gg, ww = (self.sums(a, b) for a, b in ((g, w), (g, g), (w, w)))
        self.sizes = jnp.sqrt(ww), jnp.sqrt(jnp.sum(ww))
        rows = w.shape[axis]
        self.channels = self._orthogonal(gw, gg, ww, delta / math.sqrt(w.size // rows))
        self.whole = self._orthogonal(jnp.sum(gw), jnp.sum(gg), jnp.sum(ww), delta / math.sqrt(w.size))

    def sums(self, a: Array, b: Array) -> Float[Array, "..."]:
        """<a, b> of each channel, axes kept."""
        return _keeping(_wide(a) * _wide(b), self.axis)

    def kind(self) -> Any:
        """1, 2 or 0: channels, whole leaf or neither."""
        if self.axis is None:
            return jnp.zeros((), int)
        return jnp.where(self.channels, 1, jnp.where(self.whole, 2, 0))

    def without_radial(self, d: Array, decay: Any, wd_ratio: Any) -> Array:
        """d - ŵ <ŵ, d> + ρ decay w, as d + (one number a channel) w."""
        if self.axis is None:
            return (d + decay * self.w).astype(d.dtype)
        dw = self.sums(d, self.w)
        by_row, by_leaf = (size + self.eps for size in self.sizes)
        part = jnp.where(self.channels, dw / by_row**2, jnp.where(self.whole, jnp.sum(dw) / by_leaf**2, 0))
        ratio = jnp.where(self.channels | self.whole, wd_ratio, 1)
        return (_wide(d) + (ratio * decay - part) * _wide(self.w)).astype(d.dtype)

    def _orthogonal(self, gw, gg, ww, most) -> Bool[Array, ""]:
        cosine = jnp.abs(gw) / (jnp.maximum(jnp.sqrt(gg), self.eps) * jnp.maximum(jnp.sqrt(ww), self.eps))
        return jnp.max(cosine) < most


def _axes(channel_axis: Axis, params: PyTree) -> list[int | None]:
    """The channel axis of every leaf, counted from the front; None for those that are not projected."""
    named = trees.named_leaves(params)
    if callable(channel_axis):
        chosen = [channel_axis(name, leaf) for name, leaf in named]
    else:
        chosen = spread(channel_axis, params, "channel_axis")
    return [None if leaf.ndim < 2 else _axis(name, leaf, axis) for (name, leaf), axis in zip(named, chosen)]


def _axis(name: str, leaf: Array, axis: Any) -> int | None:
    if axis is None:
        return None
    if not isinstance(axis, int):
        raise InputError(
            f"leaf {name}: channel_axis must be a whole number or None, got {axis!r}; "
            'optax.inject_hyperparams needs static_args="channel_axis"'
        )
    if not -leaf.ndim <= axis < leaf.ndim:
        raise InputError(f"leaf {name}: channel_axis {axis} is out of range for shape {leaf.shape}")
    return axis % leaf.ndim


@functools.partial(jax.jit, static_argnames="axis")
def _keeping(x: Array, axis: int | None) -> Array:
    """The sum over all axes but one, axes kept."""
    others = tuple(k for k in range(x.ndim) if k != axis)
    if axis not in (0, x.ndim - 1):
        return jnp.sum(x, others, keepdims=True)

    def product(x):
        rows = x.reshape(x.shape[0], -1) if axis == 0 else x.reshape(-1, x.shape[-1]).T
        sums = jnp.matmul(rows, jnp.ones(rows.shape[1], x.dtype), precision="highest")
        return jnp.expand_dims(sums, others)

    # On processors XLA would make these sums one number at a time, and once more for whatever reads them
    return jax.lax.platform_dependent(x, cpu=product, default=lambda x: jnp.sum(x, others, keepdims=True))


def _wide(x: Array) -> Array:
    """In float32 or wider, in which sums are made."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _dot(a: Array, b: Array) -> Float[Array, ""]:
    return jnp.sum(_wide(a) * _wide(b))


def _norm(a: Array) -> Float[Array, ""]:
    return jnp.sqrt(_dot(a, a))
