"""The exact motion of a world that passes closest to given states, by Levenberg-Marquardt on its state at one frame.

The flow is run for all small changes of the state at once, so a world need not be differentiable, and one batch of
flows is one iteration.

Reference: Levenberg 1944; Marquardt 1963; Nielsen 1999 for the damping.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from kinema.simulate.world import World

STEP = 1e-3  # of a state's unit size: differences of a float32 flow are then good to three digits


def fit_motion(
    world: World,
    guess: PyTree,
    target: PyTree,
    weights: PyTree,
    *,
    starts: tuple[int, ...] = (),
    iterations: int = 8,
) -> PyTree:
    """The motion `(frames, ...)` of `world` with the least sum of squares of weights (motion - target).

    Fits begin from the states of `guess` at the frames `starts` (a fifth of them apart, unless given); every state is
    retracted to an allowed one first. Weights are one over the standard deviation of `target`, 0 where it is hidden.
    """
    frames, middle = world.frames, world.frames // 2
    chosen = jnp.array(starts or tuple(range(0, frames, max(1, frames // 5))))
    offsets = (np.arange(frames) - middle) * world.dt
    around = np.arange(-middle, frames - middle + 1) * world.dt

    def flow(state: PyTree, ts) -> PyTree:
        return world.replay(world.retract(state), ts).states

    def at_middle(frame) -> PyTree:
        states = flow(jax.tree.map(lambda leaf: leaf[frame], guess), around)
        return jax.tree.map(lambda leaf: leaf[2 * middle - frame], states)

    beginnings = jax.vmap(at_middle)(chosen)
    one, restore = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], beginnings))

    def gap(vector: Float[Array, " size"]) -> Float[Array, " residuals"]:
        motion = flow(restore(vector), offsets)
        parts = jax.tree.map(lambda w, found, wanted: (w * (found - wanted)).ravel(), weights, motion, target)
        return jnp.concatenate(jax.tree.leaves(parts))

    nudges = jnp.concatenate([jnp.zeros((1, one.size)), STEP * jnp.eye(one.size)])

    def fit(first: Float[Array, " size"]) -> tuple[Array, Array]:
        def iterate(carry, _):
            best, trial, misfit, gaps, slopes, damping = carry
            found = jax.vmap(gap)(trial + nudges)
            square = jnp.sum(found[0] ** 2)
            better = square < misfit
            best, misfit = jnp.where(better, trial, best), jnp.where(better, square, misfit)
            gaps = jnp.where(better, found[0], gaps)
            slopes = jnp.where(better, (found[1:] - found[0]) / STEP, slopes)
            damping = jnp.where(better, damping / 4, damping * 6)
            normal = slopes @ slopes.T
            damped = normal + damping * jnp.diag(jnp.diag(normal) + 1e-3)
            return (best, best - jnp.linalg.solve(damped, slopes @ gaps), misfit, gaps, slopes, damping), None

        size = jax.eval_shape(gap, first).shape[0]
        empty = (first, first, jnp.array(jnp.inf), jnp.zeros(size), jnp.zeros((first.size, size)), jnp.array(0.04))
        (best, _, misfit, *_), _ = jax.lax.scan(iterate, empty, None, length=iterations)
        return best, misfit

    found, misfits = jax.vmap(fit)(jax.vmap(lambda state: ravel_pytree(state)[0])(beginnings))
    return flow(restore(found[jnp.argmin(misfits)]), offsets)
