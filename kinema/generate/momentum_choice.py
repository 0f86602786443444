"""How stiff a generator's flow is on a grid, and the momentum that it needs.

In X = x / a and kappa = s / a the flow is dX/dkappa = e(x, t), and kappa falls. A step of length d < 0 must be stable
at z = l d for the eigenvalues l > 0 of de/dX; the largest is found by power iteration along a pilot run. (l < 0 is
where samples part, which no solver has to damp.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.generate.generator import AbstractGenerator
from kinema.generate.sampling import as_struct, sample
from kinema.generate.solver import Grid, euler, number_for

MARGIN = 1.1


def stiffness(
    gen: AbstractGenerator,
    grid: Grid,
    n: int = 16,
    *,
    key,
    shape: tuple[int, ...] | PyTree,
    cond: PyTree | None = None,
    iterations: int = 8,
) -> Float[np.ndarray, "steps"]:
    """-z of every step of the grid, the largest of n samples of a first-order pilot run.

    Costs about n (2 + 2 `iterations`) evaluations a step. `cond` has a leading axis of n.

    Raises:
        InputError: n or `iterations` below 1; a generator without a noise prediction; a grid that starts where a = 0.
    """
    if n < 1 or iterations < 1:
        raise InputError(f"n and iterations must be at least 1, got n={n}, iterations={iterations}")
    if "noise" not in gen.fields or gen.path.origin != "none":
        raise InputError(f"stiffness is that of the noise prediction; {type(gen.path).__name__} has another flow")
    key_start, key_probe = jr.split(key)
    like = as_struct(shape)
    z = jax.vmap(lambda one: gen.path.noise.sample(one, like))(jr.split(key_start, n))
    start = jax.tree.map(lambda leaf: leaf * grid.s[0].astype(leaf.dtype), z)
    plan = euler(gen.path, grid, extrapolates="noise")
    pilot = sample(gen, plan, n, key=key, shape=shape, cond=cond, start=start, save="all")
    states = jax.tree.map(lambda first, rest: jnp.concatenate([first[:, None], rest[:, :-1]], 1), start, pilot.path)
    gains = _gains(gen, jnp.asarray(grid.times[:-1], jnp.result_type(float)), states, cond, key_probe, iterations)
    return np.asarray(gains, np.float64).max(0) * grid.a[:-1] * np.abs(np.diff(grid.noise_ratio))


def choose_momentum(
    gen: AbstractGenerator,
    grid: Grid,
    n: int = 16,
    *,
    key,
    shape: tuple[int, ...] | PyTree,
    cond: PyTree | None = None,
) -> float:
    """The largest number for `solver.ghvb` whose steps are stable on this grid, by a pilot run of n samples.

    Example:
        >>> number = choose_momentum(gen, grid, key=key, shape=(2,))
        >>> plan = solver.ghvb(gen.path, grid, number=number)

    Raises:
        InputError: what `stiffness` refuses.
    """
    return number_for(MARGIN * float(stiffness(gen, grid, n, key=key, shape=shape, cond=cond).max()))


@eqx.filter_jit
def _gains(gen, times, states, cond, key, iterations: int) -> Float[Array, "n steps"]:
    """The largest eigenvalue of the noise prediction's derivative, for every sample and time: of one that is nearly
    symmetric, as it is where the noise is a gradient."""

    def one(t, x, cond, key):
        v = gen.path.noise.sample(key, x)
        _, push = jax.linearize(lambda x: gen(t, x, cond).noise, x)
        v, size = _power(push, v, 0.0, iterations)
        v, shifted = _power(push, v, jnp.abs(size), iterations)
        return shifted - jnp.abs(size)

    def along(states, cond, key):
        return jax.vmap(one, (0, 0, None, 0))(times, states, cond, jr.split(key, len(times)))

    return jax.vmap(along)(states, cond, jr.split(key, len(jax.tree.leaves(states)[0])))


def _power(push, v: PyTree, shift, iterations: int) -> tuple[PyTree, Array]:
    """The direction that v -> push(v) + shift v stretches most, and by how much."""

    def scaled(v: PyTree, size) -> PyTree:
        return jax.tree.map(lambda leaf: leaf / jnp.where(size > 0, size, 1.0), v)

    def iterate(v, _):
        out = jax.tree.map(lambda leaf, old: leaf + shift * old, push(v), v)
        return scaled(out, jnp.sqrt(_dot(out, out))), _dot(v, out)

    v, stretch = jax.lax.scan(iterate, scaled(v, jnp.sqrt(_dot(v, v))), None, iterations)
    return v, stretch[-1]


def _dot(v: PyTree, w: PyTree) -> Array:
    products = [jnp.sum(one * two) for one, two in zip(jax.tree.leaves(v), jax.tree.leaves(w))]
    return jnp.sum(jnp.stack(products))
