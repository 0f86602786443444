"""Gradient descent on factors as one compiled loop, ScaledGD beside it, and rates of fall with their errors.

    ScaledGD:  F <- F - η ∇F (GᵀG + d)⁻¹,   G <- G - η ∇G (FᵀF + d)⁻¹,   X <- X - η ∇X (XᵀX + d)⁻¹

[Xiong, Ding & Du 2024; ScaledGD: Tong, Ma & Chi 2021, with damping d: Xu, Shen, Chi & Ma 2023]
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from kinema.errors import InputError


class Descent(eqx.Module):
    """What a descent came to. Records (records,) of the loss, of its metrics and of what was watched, by step."""

    params: PyTree
    steps: Int[Array, " records"]
    loss: Float[Array, " records"]
    metrics: dict[str, Array]
    watched: PyTree


def descend(
    loss: Callable[..., tuple[Array, dict[str, Array]]],
    start: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    every: int = 1,
    watch: Callable[[PyTree], PyTree] | None = None,
) -> Descent:
    """`steps` of full gradients down an objective without data or chance; a record at step 0 and after each `every`.

    Pure, so it may be jitted, mapped over starts and differentiated; `learn.fit` runs the same losses with checkpoints.
    `watch(params)` is kept in the records: `lambda factors: singular_values(product(factors))`.

    >>> run = descend(lambda w, batch, key: (w**2, {}), jnp.array(1.0), optimizer=optax.sgd(0.25), steps=4, every=2)
    >>> run.steps.tolist(), run.loss.tolist()
    ([0, 2, 4], [1.0, 0.0625, 0.00390625])

    Raises:
        InputError: `every` does not divide `steps`.
    """
    if every < 1 or steps % every:
        raise InputError(f"every must divide steps, got every={every}, steps={steps}")
    rule = optax.with_extra_args_support(optimizer)

    def look(params):
        value, metrics = loss(params, None, None)
        return value, metrics, None if watch is None else watch(params)

    def one(carry, _):
        params, state = carry
        (value, _), grads = jax.value_and_grad(lambda p: loss(p, None, None), has_aux=True)(params)
        updates, state = rule.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    def block(carry, _):
        seen = look(carry[0])
        return jax.lax.scan(one, carry, length=every)[0], seen

    (params, _), records = jax.lax.scan(block, (start, rule.init(start)), length=steps // every)
    whole = jax.tree.map(lambda many, last: jnp.concatenate([many, last[None]]), records, look(params))
    return Descent(params, every * jnp.arange(steps // every + 1), *whole)


def scaled_gd(learning_rate: float, damping: float = 0.0) -> optax.GradientTransformation:
    """Descent preconditioned by the other factor: the rate does not depend on the condition number of the target.

    For X, or a pair (F, G). `damping` 0 needs k = r and a start near the solution; a small one, below the smallest
    singular value sought, allows small starts and k > r.

    >>> rule, x = scaled_gd(0.5), jnp.array([[2.0]])
    >>> rule.update(jnp.array([[8.0]]), rule.init(x), x)[0].tolist()
    [[-1.0]]

    Raises:
        InputError: a rate that is not positive, damping below 0, or, at `update`, no params or others than X or (F, G).
    """
    if not (learning_rate > 0 and damping >= 0):
        raise InputError(f"scaled_gd needs learning_rate > 0 and damping >= 0, got {learning_rate} and {damping}")

    def direction(gradient, other):
        gram = other.T @ other + damping * jnp.eye(other.shape[1], dtype=other.dtype)
        moved = jnp.linalg.solve(gram, gradient.T).T
        return eqx.error_if(
            -learning_rate * moved, ~jnp.all(jnp.isfinite(moved)), "a factor lost its rank: scaled_gd needs damping > 0"
        )

    def update(updates, state, params=None):
        leaves = jax.tree.leaves(params)
        if not (len(leaves) in (1, 2) and all(leaf.ndim == 2 for leaf in leaves)):
            raise InputError("scaled_gd needs params: one matrix X or a pair of them, (F, G)")
        grads, structure = jax.tree.flatten(updates)
        return jax.tree.unflatten(structure, list(map(direction, grads, leaves[::-1]))), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def product(params: PyTree) -> Float[Array, "n1 n2"]:
    """X Xᵀ, or F Gᵀ of a pair."""
    leaves = jax.tree.leaves(params)
    return leaves[0] @ leaves[-1].T


def singular_values(matrix: Float[Array, "n1 n2"]) -> Float[Array, " few"]:
    """Singular values, largest first: watched along a descent they show one direction after another being found."""
    return jnp.linalg.svd(matrix, compute_uv=False)


def balance(f: Float[Array, "n1 k"], g: Float[Array, "n2 k"]) -> Float[Array, "k k"]:
    """FᵀF - GᵀG, which gradient flow conserves and descent does to O(η²) a step."""
    return f.T @ f - g.T @ g


@dataclass(frozen=True)
class RateFit:
    """`slope` of log error against step (exponential) or against log step (power); negative where errors fall.

    `stderr` is the standard error of the mean of the slopes of the window's parts. Curves of descent have no noise, so
    it says how straight they are. `window`: first and last step.
    """

    slope: float
    stderr: float
    window: tuple[int, int]
    kind: str


def fit_rate(
    steps: Any,
    errors: Any,
    *,
    kind: Literal["exponential", "power"] = "exponential",
    low: float = 1e-11,
    high: float = 1e-2,
    after: int = 0,
    parts: int = 4,
) -> RateFit:
    """How fast errors fall where they lie in [low, high], from step `after` on.

    The saddle before and the rounding floor behind give nonsense; the window leaves them out. It ends where the error
    first falls below `low`.

    >>> found = fit_rate(np.arange(1, 400), 0.01 * 0.9 ** np.arange(1, 400))
    >>> round(found.slope, 4), round(float(np.log(0.9)), 4)
    (-0.1054, -0.1054)

    Raises:
        InputError: fewer than two records for each of the window's parts, an unknown kind, or errors of another shape.
    """
    if kind not in ("exponential", "power"):
        raise InputError(f"kind must be 'exponential' or 'power', got {kind!r}")
    steps, errors = np.asarray(steps, np.float64), np.asarray(errors, np.float64)
    if steps.ndim != 1 or steps.shape != errors.shape:
        raise InputError(f"steps and errors need one shape (records,), got {steps.shape} and {errors.shape}")
    below = np.flatnonzero(~(errors >= low))
    end = below[0] if below.size else len(errors)
    inside = (errors <= high) & (steps >= max(after, 1)) & (np.arange(len(errors)) < end)
    x, y = steps[inside], np.log(errors[inside])
    x = np.log(x) if kind == "power" else x
    edges = np.linspace(x[0], x[-1], parts + 1)[1:-1] if len(x) else np.zeros(0)
    pieces = [piece for piece in np.split(np.arange(len(x)), np.searchsorted(x, edges)) if len(piece) > 1]
    if len(pieces) < parts:
        raise InputError(
            f"only {len(x)} errors lie in [{low:g}, {high:g}] from step {after} on, too few for {parts} parts of two "
            "or more: record more often or widen the window"
        )
    slopes = [np.polyfit(x[piece], y[piece], 1)[0] for piece in pieces]
    first, last = steps[inside][[0, -1]]
    return RateFit(
        float(np.polyfit(x, y, 1)[0]), float(np.std(slopes, ddof=1) / parts**0.5), (int(first), int(last)), kind
    )
