"""Lion-K: momentum through ∇K and decoupled decay λ minimise f(x) + K*(λx) / λ, for any convex K.

    c = b1 m + (1 - b1) g,    m <- b2 m + (1 - b2) g                     g = ∇f(x)
    x <- x - η (∇K(c) + λ x)                            explicit decay: K = |.|_1 is Lion
    x <- (x - η ∇K(c)) / (1 + η λ)                      implicit decay

With K = |.|_1 that is: minimise f where max |x| <= 1/λ.   [Chen, Liu, Liang & Liu 2024; Lion: Chen et al. 2023]
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.learn.optim.adan import proximal_decay
from kinema.learn.optim.checks import demand, real_leaves
from kinema.learn.optim.convex import L1, Convex
from kinema.learn.optim.masks import Mask, leaf_flags
from kinema.motion import trees

Choice = Convex | Callable[[str, Any], Convex]


class LionSettings(NamedTuple):
    """What a monitor has to know of a run. `mask` says which leaves decay; None: all of them."""

    learning_rate: Any
    k: Choice
    b1: float
    b2: float
    weight_decay: float
    implicit: bool = False
    mask: Mask = None

    def rate(self, count) -> Any:
        """The learning rate at a step."""
        return self.learning_rate(count) if callable(self.learning_rate) else self.learning_rate


class LionK(optax.GradientTransformationExtraArgs):
    """An optax transformation that remembers its `settings`, for `verify.monitor_lion_k`."""

    settings: LionSettings


def lion_k(
    learning_rate: optax.ScalarOrSchedule,
    k: Choice,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 1.0,
    implicit: bool = False,
    mask: Mask = None,
    mu_dtype: Any = None,
) -> LionK:
    """The optimizer that minimises f(x) + K*(λx) / λ, λ = `weight_decay`; with an indicator K*, f where λx is allowed.

    `k` is one K for all leaves (a leaf of too few axes for `GroupL2` or `Nuclear` has `L1`), or a function of a leaf's
    name and the leaf: `lambda name, leaf: Nuclear() if leaf.ndim > 1 else L1()`. `mask` says which leaves decay:
    patterns on their names, a function of name and leaf, or what optax takes; None for all. Rates that work: a third
    to a tenth of AdamW's, with a decay 3 to 10 times as large. A constant rate leaves a chatter of the order of the
    rate: let it fall. `implicit` decay is the one of the theorem of `verify.lyapunov`; the explicit one needs
    rate · decay < 1. `L1` with explicit decay is `optax.lion`, to the bit.

    >>> from kinema.learn.optim.convex import L1
    >>> rule, x = lion_k(0.1, L1(), weight_decay=0.5), jnp.array([1.0, -2.0])
    >>> updates, _ = rule.update(jnp.array([3.0, -0.2]), rule.init(x), x)
    >>> updates.round(3).tolist()
    [-0.15000000596046448, 0.20000000298023224]

    Raises:
        InputError: b1 or b2 outside [0, 1), a rate that is not positive, decay below 0, explicit rate · decay of 1 or
            more; at `init`, a K that does not fit its leaf, a complex leaf, or a mask that fits no leaf.

    Warns:
        UserWarning: b2 < b1, where the Lyapunov function need not fall.
    """
    _check(learning_rate, weight_decay, implicit)
    direction = scale_by_lion_k(k, b1, b2, mu_dtype)
    rate = optax.scale_by_learning_rate(learning_rate)
    if implicit:
        chained = optax.chain(direction, rate, proximal_decay(learning_rate, weight_decay, mask))
    else:
        decays = None if mask is None else functools.partial(_decays, mask)
        chained = optax.chain(direction, optax.add_decayed_weights(weight_decay, decays), rate)
    rule = LionK(chained.init, optax.with_extra_args_support(chained).update)
    rule.settings = LionSettings(learning_rate, k, b1, b2, weight_decay, implicit, mask)
    return rule


def scale_by_lion_k(k: Choice, b1: float = 0.9, b2: float = 0.99, mu_dtype: Any = None) -> optax.GradientTransformation:
    """Gradients replaced by ∇K(b1 m + (1 - b1) g), in optax's sign: to be scaled by minus the rate.

    The state is optax's `ScaleByLionState`. Muon's direction is `Nuclear(steps=5)` with b1 = b2 = β, and with
    b1 = β² where it looks ahead (Nesterov).

    Raises:
        InputError: as `lion_k`.

    Warns:
        UserWarning: b2 < b1.
    """
    for name, value in {"b1": b1, "b2": b2}.items():
        demand(name, value, lambda v: 0 <= v < 1, "in [0, 1)")
    if b2 < b1:
        warnings.warn(
            f"b2 = {b2} is below b1 = {b1}: the theorem of a falling Lyapunov function needs b2 >= b1", stacklevel=2
        )
    dtype = None if mu_dtype is None else jax.dtypes.canonicalize_dtype(mu_dtype)

    def init(params):
        convex_of(k, params)
        mu = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), params)
        return optax.ScaleByLionState(jnp.zeros((), jnp.int32), mu)

    def update(updates, state, params=None):
        del params
        each = iter(convex_of(k, updates))
        moved = jax.tree.map(lambda g, m: next(each).grad((1.0 - b1) * g + b1 * m), updates, state.mu)
        mu = optax.tree.cast(optax.tree.update_moment(updates, state.mu, b2, 1), dtype)
        return moved, optax.ScaleByLionState(optax.safe_increment(state.count), mu)

    return optax.GradientTransformation(init, update)


def convex_of(k: Choice, params: PyTree) -> list[Convex]:
    """The K of every leaf, in tree order.

    Raises:
        InputError: a K that does not fit its leaf, something that is no K, or a complex leaf; the leaf is named.
    """
    real_leaves("lion_k", params)
    return [_fitting(k, name, leaf) for name, leaf in trees.named_leaves(params)]


def _fitting(k: Choice, name: str, leaf) -> Convex:
    chosen = k if isinstance(k, Convex) else k(name, leaf)
    if not isinstance(chosen, Convex):
        raise InputError(f"leaf {name}: k must give a Convex, got {type(chosen).__name__}")
    if isinstance(k, Convex) and leaf.ndim < k.least_ndim:
        return L1()
    reason = chosen.unfit(leaf.shape)
    if reason:
        raise InputError(f"leaf {name}: {reason}")
    return chosen


def _decays(mask: Mask, params: PyTree) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(params), leaf_flags(mask, params))


def _check(learning_rate, weight_decay, implicit) -> None:
    demand("learning_rate", learning_rate, lambda v: v > 0, "positive")
    demand("weight_decay", weight_decay, lambda v: v >= 0, ">= 0")
    if not (implicit or callable(learning_rate)):
        product = learning_rate * weight_decay
        demand("learning_rate * weight_decay", product, lambda v: v < 1, "below 1 with explicit decay")
