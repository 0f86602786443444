"""The sampling loop: every solver is a plan, and this runs it.

One micro-step is `predict` (the only place where a model is called) and `advance` (arithmetic). `sample` scans them
over the rows of a plan; `kinema.steer` runs the same two with a controller in between.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

from kinema.errors import InputError
from kinema.generate.fields import Heads
from kinema.generate.generator import AbstractGenerator
from kinema.generate.noise import Normal
from kinema.generate.rows import Rows, bind
from kinema.generate.solver.plan import Plan

__all__ = ["Rows", "Samples", "SolverState", "bind", "sample"]


class SolverState(eqx.Module):
    """What a multistep solver carries for one sample, centred: current point, anchor, past outputs (newest first)."""

    x: PyTree
    anchor: PyTree
    history: tuple[PyTree, ...]


class Samples(eqx.Module):
    """The result of sampling: `x` with one leading ensemble axis, evaluations per sample, and the road there.

    `nfe` counts evaluations of the generator, `passes` those of the network inside (twice as many under guidance).
    `path` holds the states at every grid point after the source `(n, steps, ...)` if `save="all"`, else None.
    """

    x: PyTree
    nfe: int = eqx.field(static=True)
    passes: int = eqx.field(static=True)
    path: PyTree | None = None


def sample(
    gen: AbstractGenerator,
    plan: Plan | Rows,
    n: int,
    *,
    key,
    shape: tuple[int, ...] | PyTree,
    cond: PyTree | None = None,
    x0: PyTree | None = None,
    start: PyTree | None = None,
    noise: str = "independent",
    save: str = "last",
    batch_size: int | None = None,
) -> Samples:
    """Draw n samples by running a plan from the source.

    `shape` is one sample's shape, or a PyTree of `jax.ShapeDtypeStruct`. `cond` and `x0` carry a leading axis of n;
    `start`, of the same form, replaces the draw from the source. Sample i depends on `key` and i alone, never on n or
    `batch_size` (how many are carried at once; all by default). `noise="brownian"` makes the noise of every step an
    increment of one Brownian path per sample, so that the same key gives the same sample in the limit of many steps.

    Example:
        >>> plan = solver.dpmpp(gen.path, grids.karras(gen.path, 12), order=2)
        >>> sample(gen, plan, 64, key=key, shape=(2,)).x.shape
        (64, 2)

    Raises:
        InputError: n < 1; an unknown `save` or `noise`; `cond`, `x0` or `start` whose leading axis is not n or, but
            for `cond`, whose samples are of another shape; a plan
            that does not fit the generator; Brownian noise for a plan that puts noise back or stands still to add it.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if save not in ("last", "all"):
        raise InputError(f"save must be 'last' or 'all', got {save!r}")
    if noise not in ("independent", "brownian"):
        raise InputError(f"noise must be 'independent' or 'brownian', got {noise!r}")
    for name, tree in (("cond", cond), ("x0", x0), ("start", start)):
        check_leading(name, tree, n)
    like = as_struct(shape)
    for name, tree in (("x0", x0), ("start", start)):
        check_samples(name, tree, like)
    rows = plan.without_shallow() if isinstance(plan, Rows) else bind(plan, gen)
    if noise == "brownian" and "clock" not in rows.uses:
        raise InputError("noise='brownian' needs a plan whose noisy steps all move forward along the grid")
    options = (save == "all", noise == "brownian", batch_size)
    x, path = _sample(gen, rows, key, n, like, cond, x0, start, *options)
    if path is not None:
        whole = np.flatnonzero(np.asarray(rows.whole))
        path = jax.tree.map(lambda leaf: leaf[:, whole], path)
    return Samples(x, rows.micro_steps, rows.micro_steps * gen.calls, path)


@eqx.filter_jit
def _sample(gen, rows: Rows, key, n: int, like, cond, x0, start, save: bool, brownian: bool, batch_size: int | None):
    def one(arguments):
        i, cond, x0, start = arguments
        key_source, key_steps = jr.split(jr.fold_in(key, i))
        x = source(gen, rows, key_source, like, x0) if start is None else start
        x0 = None if gen.path.origin == "endpoint" else x0  # drawn from, then unknown
        state = begin(rows, x, x0)
        tree = diffrax.VirtualBrownianTree(-1.0, 1.0, 2**-16, like, key_steps) if brownian else None

        def micro_step(state, inputs):
            row, j = inputs
            key_step = jr.fold_in(key_steps, j)
            state = perturb(gen, row, state, key_step)
            raw = predict(gen, row, state.x, cond, x0)
            xi = None if tree is None else _increment(tree, row.clock)
            state = advance(gen, row, state, push(row, state, raw, x0), key_step, xi)
            return state, shift(state.x, row.centre_after, x0) if save else None

        state, path = jax.lax.scan(micro_step, state, (rows, jnp.arange(rows.micro_steps)))
        return shift(state.x, rows.centre_after[-1], x0), path

    arguments = (jnp.arange(n), cond, x0, start)
    if batch_size is None:
        return jax.vmap(one)(arguments)
    return jax.lax.map(one, arguments, batch_size=batch_size)


def source(gen: AbstractGenerator, rows: Rows, key, like: PyTree, x0: PyTree | None = None) -> PyTree:
    """A draw where the plan starts, s z + (a + b) x0, as if the data were x0 there.

    Raises:
        InputError: x0 missing on a path that needs it, or given on one that has none; a path that begins at data.
    """
    gen.path.check_origin(x0)
    if not gen.path.has_source:
        raise InputError(f"start is missing: {type(gen.path).__name__} begins at data, which cannot be drawn")
    z = gen.path.noise.sample(key, like)
    return shift(jax.tree.map(lambda leaf: (rows.s_before[0] * leaf).astype(leaf.dtype), z), rows.centre_before[0], x0)


def begin(rows: Rows, x: PyTree, x0: PyTree | None = None) -> SolverState:
    """The state of a solver that stands at the source point x."""
    y = shift(x, -rows.centre_before[0], x0)
    return SolverState(y, y, (jax.tree.map(jnp.zeros_like, y),) * rows.memory)


def perturb(gen: AbstractGenerator, row: Rows, state: SolverState, key) -> SolverState:
    """Noise put back before an evaluation (churn, restart)."""
    if "n" not in row.uses:
        return state
    xi = Normal().sample(jr.split(key)[0], state.x)
    return eqx.tree_at(lambda s: s.x, state, _sum((row.r, row.n), (state.x, xi)))


def predict(gen: AbstractGenerator, row: Rows, y: PyTree, cond: PyTree | None, x0: PyTree | None) -> PyTree:
    """The model's raw output at the centred point y: the one place where a model is called."""
    return gen.raw(row.t, shift(y, row.centre, x0), cond, x0)


def push(row: Rows, state: SolverState, raw: PyTree, x0: PyTree | None = None) -> PyTree:
    """The transformed output h = P x + Q raw + E H0 that enters the history."""
    return _average(row, state, shift(_affine(row.P, row.Q, state.x, raw), row.h_origin, x0))


def push_edit(row: Rows, h: PyTree, data: PyTree, edited: PyTree) -> PyTree:
    """What h becomes when the data prediction is edited; h itself, to the bit, where it is not."""
    return jax.tree.map(lambda out, old, new: out + row.from_data * (new - old), h, data, edited)


def data_prediction(row: Rows, state: SolverState, raw: PyTree, x0: PyTree | None = None) -> PyTree:
    """The data prediction that a raw output means."""
    return shift(_affine(row.data_x, row.data_raw, state.x, raw), row.data_origin, x0)


def advance(
    gen: AbstractGenerator, row: Rows, state: SolverState, h: PyTree, key, xi: PyTree | None = None
) -> SolverState:
    """Take h into the history and combine: the new x and anchor. `xi` replaces the draw of noise."""
    terms = (state.x, state.anchor, h, *state.history)
    x = _sum([row.M[0, i] for i in row.columns[0]], [terms[i] for i in row.columns[0]])
    if "d" in row.uses:
        x = jax.tree.map(lambda leaf: leaf + row.d[0].astype(leaf.dtype), x)
    if row.uses & {"c", "snr"}:
        xi = Normal().sample(jr.split(key)[1], state.x) if xi is None else xi
        if "c" in row.uses:
            x = _sum((1.0, row.c), (x, xi))
        if "snr" in row.uses:
            x = _langevin(row, x, h, xi)
    anchor = x
    if "anchor" in row.uses:
        kept = _sum([row.M[1, i] for i in row.columns[1]], [terms[i] for i in row.columns[1]])
        anchor = jax.tree.map(lambda new, old: jnp.where(row.follows, new, old + row.d[1].astype(old.dtype)), x, kept)
    return SolverState(x, anchor, (h, *state.history)[: len(state.history)])


def shift(x: PyTree, b, x0: PyTree | None) -> PyTree:
    """x + b x0; x itself where there is no x0."""
    return x if x0 is None else _sum((1.0, b), (x, x0))


def as_struct(shape: Any) -> PyTree:
    """One sample's structure: a shape becomes a float array of the default precision."""
    if isinstance(shape, tuple | list) and all(isinstance(size, int | np.integer) for size in shape):
        return jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(float))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shape)


def check_leading(name: str, tree: PyTree | None, n: int):
    """Refuse a tree whose leaves do not begin with an axis of n."""
    for leaf in jax.tree.leaves(tree):
        if jnp.ndim(leaf) < 1 or leaf.shape[0] != n:
            raise InputError(f"{name} must have a leading axis of n={n}, got shape {jnp.shape(leaf)}")


def check_samples(name: str, tree: PyTree | None, like: PyTree):
    """Refuse a tree whose samples have another structure or shape than `like`."""
    if tree is None:
        return
    wanted, found = (jax.tree.map(lambda leaf, skip=skip: leaf.shape[skip:], t) for t, skip in ((like, 0), (tree, 1)))
    if wanted != found:
        raise InputError(f"{name} must hold samples of shape {wanted}, got {found}")


def _affine(P, Q, x: PyTree, raw: PyTree) -> PyTree:
    """P x + Q . raw, for one output or two."""
    return _sum((P, *Q), (x, *raw) if isinstance(raw, Heads) else (x, raw))


def _average(row: Rows, state: SolverState, h: PyTree) -> PyTree:
    return _sum((1.0, row.E), (h, state.history[0])) if "E" in row.uses else h


def _langevin(row: Rows, x: PyTree, score: PyTree, xi: PyTree) -> PyTree:
    """A step whose size sets the ratio of noise to score; rows without `snr` stay as they are."""
    size = sum(leaf.size for leaf in jax.tree.leaves(score))
    square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(score))
    moves = (row.snr > 0) & (square > 0)
    step = jnp.where(moves, 2 * row.snr**2 * size / jnp.where(moves, square, 1.0), 0.0)
    return _sum((1.0, step, jnp.sqrt(2 * step)), (x, score, xi))


def _increment(tree: diffrax.VirtualBrownianTree, clock: Array) -> PyTree:
    """The Brownian increment over a row's clock, scaled to unit variance; 0 in a row that stands still."""
    width = clock[1] - clock[0]
    scale = jnp.where(width > 0, jax.lax.rsqrt(jnp.where(width > 0, width, 1.0)), 0.0)
    return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), tree.evaluate(clock[0], clock[1]))


def _sum(coefficients, trees) -> PyTree:
    """The weighted sum of trees, in the dtype of the first."""

    def weigh(*leaves: Array) -> Array:
        total = coefficients[0] * leaves[0]
        for coefficient, leaf in zip(coefficients[1:], leaves[1:]):
            total = total + coefficient * leaf
        return total.astype(leaves[0].dtype)

    return jax.tree.map(weigh, *trees)
