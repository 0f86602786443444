"""The classical Runge-Kutta method with a fixed number of steps: cheap to compile inside other loops."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def runge_kutta(slope: Callable, state: PyTree, start, end, steps: int) -> PyTree:
    """The state at `end` of d state / d clock = slope(clock, state), in equal steps of fourth order."""
    step = (end - start) / steps

    def whole(i, state):
        def stage(carry, coefficients):  # a loop, so that the slope is compiled once
            k, total = carry
            share, weight = coefficients
            k = slope(start + (i + share) * step, jax.tree.map(lambda y, dy: y + share * step * dy, state, k))
            return (k, jax.tree.map(lambda sum_, dy: sum_ + weight * dy, total, k)), None

        rest = jax.tree.map(jnp.zeros_like, state)
        kind = jnp.result_type(*jax.tree.leaves(state))
        shares, weights = (jnp.asarray(one, kind) for one in ((0, 0.5, 0.5, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)))
        (_, total), _ = jax.lax.scan(stage, (rest, rest), (shares, weights))
        return jax.tree.map(lambda y, dy: y + step * dy, state, total)

    return jax.lax.fori_loop(0, steps, whole, state)
