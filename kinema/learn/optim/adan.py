"""Adan: momentum, its Nesterov correction from differences of gradients, and a second moment of both.

    Δ = g - g₋₁                                    0 at the first step
    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) Δ,    n <- b3 n + (1 - b3) (g + b2 Δ)²
    u = (m / (1 - b1ᵗ) + b2 v / (1 - b2ᵗ)) / (sqrt(n / (1 - b3ᵗ)) + eps)
    x <- (x - η u) / (1 + η λ)                     proximal decay
    x <- (1 - η λ) x - η u                         decoupled decay

`optax.adan` (0.2.8) has 1 - b2 where the algorithm has b2, and decoupled decay where it says proximal.
[Xie, Zhou, Li, Lin & Yan 2024]
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from kinema.errors import InputError
from kinema.learn.optim.checks import demand, real_leaves, with_params
from kinema.learn.optim.masks import Mask, leaf_flags
from kinema.learn.optim.restart import Restart
from kinema.motion import trees


def adan(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    *,
    weight_decay: Any = 0.02,
    prox: bool = True,
    max_grad_norm: Any = None,
    restart: Restart | None = None,
    mask: Mask = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Adan as published. Rates that work: 2 to 10 times AdamW's; in runs of a few hundred steps, b1 = 0.9.

    >>> import jax, jax.numpy as jnp, optax
    >>> from kinema.learn.optim import adan
    >>> rule = adan(5e-3, mask=lambda name, leaf: leaf.ndim > 1)
    >>> params = {"weight": jnp.ones((2, 3)), "bias": jnp.zeros(2)}
    >>> state = rule.init(params)
    >>> updates, state = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
    >>> params = optax.apply_updates(params, updates)

    The b's are shares that are kept: 1 minus the paper's β. `max_grad_norm` bounds the global norm before anything
    is stored; `mask` says which leaves decay (see `leaf_flags`); `prox=False` is decoupled decay. `restart` is None,
    `RestartEvery(k)` or `RestartWhenMoved(radius)`. `mu_dtype` holds m, v and the last gradient in bfloat16, say;
    differences are taken in float32. Memory: four numbers a parameter, AdamW two.

    Raises:
        InputError: a b outside [0, 1), eps or max_grad_norm not positive, weight_decay or a rate below 0; at `init`, a
            leaf that is not real; at `update`, no params.
    """
    demand("learning_rate", learning_rate, lambda v: v >= 0, ">= 0")
    demand("weight_decay", weight_decay, lambda v: v >= 0, ">= 0")
    if prox:
        after = [optax.scale_by_learning_rate(learning_rate), proximal_decay(learning_rate, weight_decay, mask)]
    else:
        after = [_decoupled_decay(weight_decay, mask), optax.scale_by_learning_rate(learning_rate)]
    before = [] if max_grad_norm is None else [_clip(max_grad_norm, eps)]
    return optax.chain(*before, scale_by_adan(b1, b2, b3, eps, restart=restart, mu_dtype=mu_dtype), *after)


class AdanState(NamedTuple):
    """`count` of steps since the last restart; m, v, n and the last gradient; what the restart remembers."""

    count: Int[Array, ""]
    m: PyTree
    v: PyTree
    n: PyTree
    previous: PyTree
    memory: PyTree


def scale_by_adan(
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    *,
    restart: Restart | None = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Gradients replaced by Adan's direction u, to be scaled by minus the rate.

    n is kept in float32 or wider, whatever the parameters are.

    Raises:
        InputError: as `adan`.
    """
    for name, value in {"b1": b1, "b2": b2, "b3": b3}.items():
        demand(name, value, lambda v: 0 <= v < 1, "in [0, 1)")
    demand("eps", eps, lambda v: v > 0, "positive")

    def init(params):
        real_leaves("adan", params)

        def zeros(dtype=None):
            return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), params)

        n = jax.tree.map(lambda x: jnp.zeros(x.shape, _width(x)), params)
        memory = () if restart is None else restart.begin(params)
        return AdanState(jnp.zeros((), jnp.int32), zeros(mu_dtype), zeros(mu_dtype), n, zeros(mu_dtype), memory)

    def scale(n, count):
        return jnp.sqrt(n / (1 - b3**count)) + eps

    def update(updates, state, params=None):
        count, m, v, n, previous, memory = state
        if restart is not None:
            scales = jax.tree.map(lambda x: scale(x, jnp.maximum(count, 1)), n)
            again, memory = restart.due(memory, count, scales, params)
            count = jnp.where(again, 0, count)
            m, v, n = jax.tree.map(lambda x: jnp.where(again, jnp.zeros_like(x), x), (m, v, n))
        first, count = count == 0, _next(count)

        def leaf(g, m, v, n, previous):
            full = g.astype(n.dtype)
            change = jnp.where(first, 0, full - previous.astype(n.dtype))
            m = b1 * m.astype(n.dtype) + (1 - b1) * full
            v = b2 * v.astype(n.dtype) + (1 - b2) * change
            n = b3 * n + (1 - b3) * (full + b2 * change) ** 2
            ahead = m / (1 - b1**count) + b2 * v / (1 - b2**count)
            u, kept = ahead / scale(n, count), previous.dtype
            return u.astype(g.dtype), m.astype(kept), v.astype(kept), n, g.astype(kept)

        structure = jax.tree.structure(updates)
        each = [leaf(*row) for row in zip(*map(structure.flatten_up_to, (updates, m, v, n, previous)))]
        u, m, v, n, previous = (structure.unflatten([one[k] for one in each]) for k in range(5))
        return u, AdanState(count, m, v, n, previous, memory)

    return optax.GradientTransformation(init, update)


def proximal_decay(
    learning_rate: optax.ScalarOrSchedule, weight_decay: Any, mask: Mask = None
) -> optax.GradientTransformation:
    """Updates d replaced by (x + d) / (1 + ηλ) - x. It must come last, behind the learning rate η.

    >>> import jax.numpy as jnp, optax
    >>> from kinema.learn.optim import proximal_decay
    >>> rule, x = optax.chain(optax.sgd(0.5), proximal_decay(0.5, 2.0)), jnp.array([4.0])
    >>> updates, _ = rule.update(jnp.array([2.0]), rule.init(x), x)
    >>> optax.apply_updates(x, updates).tolist()
    [1.5]

    Raises:
        InputError: a rate or decay below 0; at `update`, no params.
    """
    demand("learning_rate", learning_rate, lambda v: v >= 0, ">= 0")
    demand("weight_decay", weight_decay, lambda v: v >= 0, ">= 0")

    def init(params):
        leaf_flags(mask, params)
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)) if callable(learning_rate) else optax.EmptyState()

    def update(updates, state, params=None):
        params = with_params("proximal_decay", params)
        rate = learning_rate
        if callable(learning_rate):
            rate = learning_rate(state.count)
            state = optax.ScaleByScheduleState(_next(state.count))
        shrink = rate * weight_decay
        flags = iter(leaf_flags(mask, params))
        moved = jax.tree.map(
            lambda d, x: ((d - shrink * x) / (1 + shrink)).astype(d.dtype) if next(flags) else d, updates, params
        )
        return moved, state

    return optax.GradientTransformation(init, update)


class NesterovState(NamedTuple):
    """The momentum and the last gradient."""

    momentum: PyTree
    previous: PyTree
    count: Int[Array, ""]


def scale_by_nme(
    b: Any = 0.9, first_difference: Literal["gradient", "zero"] = "gradient"
) -> optax.GradientTransformation:
    """Nesterov momentum from gradients at one point a step: m <- b m + g + b (g - g₋₁), for any scaling behind it.

    With "gradient", the default, the first difference is g itself (g₋₁ = 0), and the points are exactly the look-ahead
    points of m <- b m + ∇f(x - η b m), x <- x - η m. "zero" (g₋₁ = g) is Adan's choice, whose second moment would
    suffer from a doubled first step.

    >>> import jax.numpy as jnp, optax
    >>> from kinema.learn.optim import scale_by_nme
    >>> rule, x = optax.chain(scale_by_nme(0.5), optax.scale(-0.1)), jnp.array(1.0)
    >>> round(float(rule.update(x, rule.init(x))[0]), 3)
    -0.15

    Raises:
        InputError: b outside [0, 1), another first difference.
    """
    demand("b", b, lambda v: 0 <= v < 1, "in [0, 1)")
    if first_difference not in ("gradient", "zero"):
        raise InputError(f"first_difference must be 'gradient' or 'zero', got {first_difference!r}")

    def init(params):
        momentum, previous = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return NesterovState(momentum, previous, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        none = (state.count == 0) & (first_difference == "zero")

        def leaf(g, m, last):
            return b * m + g + b * jnp.where(none, 0, g - last)

        momentum = jax.tree.map(leaf, updates, state.momentum, state.previous)
        return momentum, NesterovState(momentum, updates, _next(state.count))

    return optax.GradientTransformation(init, update)


def _decoupled_decay(weight_decay: Any, mask: Mask) -> optax.GradientTransformation:
    """λx added to the direction."""

    def update(updates, state, params=None):
        flags = iter(leaf_flags(mask, with_params("adan", params)))
        return jax.tree.map(lambda u, x: u + weight_decay * x if next(flags) else u, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _clip(most: Any, eps: Any) -> optax.GradientTransformation:
    """g min(1, most / (|g| + eps)), |g| the norm of all leaves together."""
    demand("max_grad_norm", most, lambda v: v > 0, "positive")

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1, most / (trees.norm(updates) + eps))
        return jax.tree.map(lambda g: (factor * g).astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _next(count: Array) -> Array:
    return jnp.asarray(optax.safe_increment(count))


def _width(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
