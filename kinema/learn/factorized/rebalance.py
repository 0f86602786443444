"""Rebalancing a pair of factors, once: the product stays, one factor becomes a multiple of an isometry.

    F = U S Vᵀ:    F <- β U,   G <- G V S / β        F Gᵀ as before, FᵀF = β²

From then on every direction of G contracts at the rate η β², whatever the start.   [Xiong, Ding & Du 2024]
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Num

from kinema.errors import InputError, unknown
from kinema.motion import trees

Side = Literal["left", "right"]


def rebalance(
    f: Float[Array, "n1 k"], g: Float[Array, "n2 k"], beta: float, side: Side = "left"
) -> tuple[Float[Array, "n1 k"], Float[Array, "n2 k"]]:
    """The same product F Gᵀ, with FᵀF = β² (`side="left"`) or GᵀG = β².

    Betas that work: half the root of the smallest singular value sought, to a half. A direction in which the side is
    zero becomes any direction, on which the other factor is 0.

    >>> f, g = rebalance(jnp.array([[3.0], [4.0]]), jnp.array([[2.0]]), 0.5)
    >>> jnp.abs(f).round(3).tolist(), jnp.abs(g).tolist()
    ([[0.30000001192092896], [0.4000000059604645]], [[20.0]])

    Raises:
        InputError: beta not positive, an unknown side, factors of different k, or k larger than the side is long.
    """
    _checked(beta, side)
    if side == "right":
        g, f = rebalance(g, f, beta)
        return f, g
    if f.shape[1] != g.shape[1] or f.shape[1] > f.shape[0]:
        raise InputError(f"rebalance needs factors (n1, k), (n2, k) with k <= n1, got {f.shape} and {g.shape}")
    u, s, vt = jnp.linalg.svd(f, full_matrices=False)
    return beta * u, (g @ vt.T) * s / beta


class Pair(NamedTuple):
    """Leaf names of F and G. `transposed`: the second leaf is Gᵀ (k, n2), as in LoRA's B A."""

    left: str
    right: str
    transposed: bool = False


class RebalanceState(NamedTuple):
    """Whether it has been done, the steps so far, and the loss at the first of them."""

    done: Bool[Array, ""]
    count: Num[Array, ""]
    first: Float[Array, ""]


def rebalance_once(
    beta: float,
    *,
    pairs: Sequence[Pair] = (Pair("0", "1"),),
    below: float | None = 1e-2,
    at: int | None = None,
    side: Side = "left",
) -> optax.GradientTransformationExtraArgs:
    """The last part of an optimizer's chain: at one step, the parameters that it steps to are rebalanced.

    That step is number `at`, or else the first whose loss is less than `below` times the first loss: late enough for
    all directions of the target to be found. The loss comes as optax passes it, `update(..., value=loss)`; `learn.fit`
    and `descend` do. By default the parameters are one pair (F, G). State of a momentum is not carried along.

    >>> rule = optax.chain(optax.sgd(0.2), rebalance_once(0.5, at=150))

    Raises:
        InputError: as `rebalance`; neither `at` nor `below`; at `init`, a name that is no leaf; at `update`, no params,
            or no `value` where `below` decides.
    """
    _checked(beta, side)
    share = below or 0.0
    if at is None and not share > 0:
        raise InputError(f"rebalance_once needs a step `at` or a positive `below`, got at={at}, below={below}")

    def init(params):
        names = trees.leaf_names(params)
        for name in (name for pair in pairs for name in (pair.left, pair.right)):
            if name not in names:
                raise InputError(unknown("leaf", name, names))
        return RebalanceState(jnp.zeros((), bool), jnp.zeros((), jnp.int32), jnp.full((), jnp.inf))

    def update(updates, state, params=None, *, value: Any = None, **extra):
        del extra
        if params is None or (at is None and value is None):
            raise InputError("rebalance_once needs update(grads, state, params, value=loss)")
        first = state.first
        if at is not None:
            due = state.count >= at
        else:
            first = jnp.where(state.count == 0, value, first).astype(first.dtype)
            due = value < share * first
        now = due & ~state.done
        moved = jax.lax.cond(now, lambda: _rebalanced(params, updates, pairs, beta, side), lambda: updates)
        return moved, RebalanceState(state.done | now, state.count + 1, first)

    return optax.GradientTransformationExtraArgs(init, update)


def _rebalanced(params, updates, pairs: Sequence[Pair], beta: float, side: Side):
    """Updates that end in rebalanced parameters."""
    old = trees.leaf_names(params)
    stepped = {name: old[name] + step for name, step in trees.leaf_names(updates).items()}
    moved = {}
    for left, right, transposed in pairs:
        f, g = stepped[left], stepped[right]
        f, g = rebalance(f, g.T if transposed else g, beta, side)
        moved |= {left: f - old[left], right: (g.T if transposed else g) - old[right]}
    return trees.replace_leaves(updates, {name: x.astype(old[name].dtype) for name, x in moved.items()})


def _checked(beta: float, side: str) -> None:
    if not beta > 0:
        raise InputError(f"beta must be positive, got {beta}")
    if side not in ("left", "right"):
        raise InputError(f"side must be 'left' or 'right', got {side!r}")
