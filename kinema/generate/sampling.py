"""The sampling loop: every solver is a plan, and this runs it.

One micro-step is `predict` (the only place where a model is called) and `advance` (arithmetic). `sample` scans them
over the rows of a plan; `kinema.steer` runs the same two with a controller in between.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

from kinema.errors import InputError
from kinema.generate.fields import convert
from kinema.generate.generator import AbstractGenerator, moments_in_float64
from kinema.generate.solver.plan import Plan


class Rows(eqx.Module):
    """A plan bound to a generator: the arrays that the loop scans over, one leading axis of micro-steps.

    h = P x + Q raw pushes the model's raw output; data = data_x x + data_raw raw reads it as a data prediction;
    an edit of it by e changes h by from_data e. x here is y = x - b x0, the centred state.
    """

    t: Array
    b: Array
    b_after: Array
    P: Array
    Q: Array
    from_data: Array
    data_x: Array
    data_raw: Array
    E: Array
    M: Array
    d: Array
    r: Array
    n: Array
    c: Array
    snr: Array
    after: Array
    whole: Array
    follows: Array
    columns: tuple[tuple[int, ...], tuple[int, ...]] = eqx.field(static=True)
    uses: frozenset[str] = eqx.field(static=True)

    @property
    def micro_steps(self) -> int:
        return self.t.shape[0]

    @property
    def memory(self) -> int:
        """Past outputs that a state carries from one micro-step to the next."""
        return max(self.M.shape[-1] - 3, int("E" in self.uses))

    def __getitem__(self, j) -> "Rows":
        """Row j of every column."""
        return jax.tree.map(lambda column: column[j], self)


class SolverState(eqx.Module):
    """What a multistep solver carries for one sample, all centred: current point, anchor, past outputs (newest first)."""

    x: PyTree
    anchor: PyTree
    history: tuple[PyTree, ...]


class Samples(eqx.Module):
    """The result of sampling: `x` with one leading ensemble axis, network evaluations per sample, and the road there.

    `path` holds the states at every grid point after the source `(n, steps, ...)` if `save="all"`, else None.
    """

    x: PyTree
    nfe: int = eqx.field(static=True)
    path: PyTree | None = None


def bind(plan: Plan, gen: AbstractGenerator) -> Rows:
    """Fuse a plan with a generator's parameterization, in float64.

    Raises:
        InputError: the generator lacks the field that the plan extrapolates; a coefficient that is not finite.
    """
    if plan.extrapolates not in gen.fields:
        raise InputError(f"{plan.name} extrapolates {plan.extrapolates!r}; this generator has {sorted(gen.fields)}")
    moments = moments_in_float64(gen.path, plan.t)
    own, data = gen.affine(plan.t, plan.extrapolates), gen.affine(plan.t, "data")
    with np.errstate(divide="ignore", invalid="ignore"):
        back = convert("data", plan.extrapolates, moments)
    columns = {
        "t": plan.t,
        "b": moments.b,
        "b_after": plan.grid.b[plan.after],
        "P": plan.A + plan.B * own.P,
        "Q": plan.B * own.Q,
        "from_data": plan.B * back.Q,
        "data_x": data.P,
        "data_raw": data.Q,
        **{name: getattr(plan, name) for name in ("E", "M", "d", "r", "n", "c", "snr")},
    }
    for name in ("P", "Q"):
        if not np.isfinite(columns[name]).all():
            row = int(np.argmin(np.isfinite(columns[name])))
            raise InputError(
                f"a network that predicts {gen.predicts!r} cannot drive {plan.name} at t={plan.t[row]:g}: its {name} is"
                " not finite there; start or end the grid inside, or predict data or velocity"
            )
    uses = {name for name in ("d", "n", "c", "E", "snr") if np.any(columns[name])}
    uses |= {"origin"} if gen.path.origin != "none" else set()
    used = tuple(tuple(i for i in range(plan.M.shape[2]) if plan.M[:, out, i].any()) for out in (0, 1))
    uses |= {"anchor"} if 1 in used[0] + used[1] else set()
    return Rows(
        **{name: jnp.asarray(values, jnp.result_type(float)) for name, values in columns.items()},
        after=jnp.asarray(plan.after),
        whole=jnp.asarray(plan.whole),
        follows=jnp.asarray((plan.M[:, 0] == plan.M[:, 1]).all(-1)),
        columns=used,
        uses=frozenset(uses),
    )


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
    save: str = "last",
    batch_size: int | None = None,
) -> Samples:
    """Draw n samples by running a plan from the source.

    `shape` is one sample's shape, or a PyTree of `jax.ShapeDtypeStruct`. `cond` and `x0` carry a leading axis of n;
    `start`, of the same form, replaces the draw from the source. Sample i depends on `key` and i alone, never on n or
    `batch_size` (how many are carried at once; all by default).

    Example:
        >>> plan = solver.dpmpp(gen.path, grids.karras(gen.path, 12), order=2)
        >>> sample(gen, plan, 64, key=key, shape=(2,)).x.shape
        (64, 2)

    Raises:
        InputError: n < 1; an unknown `save`; `cond`, `x0` or `start` whose leading axis is not n; a plan that does not
            fit the generator.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if save not in ("last", "all"):
        raise InputError(f"save must be 'last' or 'all', got {save!r}")
    for name, tree in (("cond", cond), ("x0", x0), ("start", start)):
        check_leading(name, tree, n)
    rows = plan if isinstance(plan, Rows) else bind(plan, gen)
    x, path = _sample(gen, rows, key, n, as_struct(shape), cond, x0, start, save == "all", batch_size)
    if path is not None:
        whole = np.flatnonzero(np.asarray(rows.whole))
        path = jax.tree.map(lambda leaf: leaf[:, whole], path)
    return Samples(x, rows.micro_steps, path)


@eqx.filter_jit
def _sample(gen, rows: Rows, key, n: int, like, cond, x0, start, save: bool, batch_size: int | None):
    def one(arguments):
        i, cond, x0, start = arguments
        key_source, key_steps = jr.split(jr.fold_in(key, i))
        x = gen.path.sample_source(key_source, like, x0) if start is None else start
        state = begin(rows, x, x0)

        def micro_step(state, inputs):
            row, j = inputs
            key_step = jr.fold_in(key_steps, j)
            state = perturb(gen, row, state, key_step)
            raw = predict(gen, row, state.x, cond, x0)
            state = advance(gen, row, state, push(row, state, raw), key_step)
            return state, shift(state.x, row.b_after, x0) if save else None

        state, path = jax.lax.scan(micro_step, state, (rows, jnp.arange(rows.micro_steps)))
        return shift(state.x, rows.b_after[-1], x0), path

    arguments = (jnp.arange(n), cond, x0, start)
    if batch_size is None:
        return jax.vmap(one)(arguments)
    return jax.lax.map(one, arguments, batch_size=batch_size)


def begin(rows: Rows, x: PyTree, x0: PyTree | None = None) -> SolverState:
    """The state of a solver that stands at the source point x."""
    y = shift(x, -rows.b[0], x0)
    return SolverState(y, y, (jax.tree.map(jnp.zeros_like, y),) * rows.memory)


def perturb(gen: AbstractGenerator, row: Rows, state: SolverState, key) -> SolverState:
    """Noise put back before an evaluation (churn, restart)."""
    if "n" not in row.uses:
        return state
    xi = gen.path.noise.sample(jr.fold_in(key, 1), state.x)
    return eqx.tree_at(lambda s: s.x, state, _sum((row.r, row.n), (state.x, xi)))


def predict(gen: AbstractGenerator, row: Rows, y: PyTree, cond: PyTree | None, x0: PyTree | None) -> PyTree:
    """The model's raw output at the centred point y: the one place where a model is called."""
    return gen.raw(row.t, shift(y, row.b, x0), cond, x0)


def push(row: Rows, state: SolverState, raw: PyTree) -> PyTree:
    """The transformed output h = P x + Q raw + E H0 that enters the history."""
    return _average(row, state, _sum((row.P, row.Q), (state.x, raw)))


def push_edit(row: Rows, h: PyTree, data: PyTree, edited: PyTree) -> PyTree:
    """What h becomes when the data prediction is edited; h itself, to the bit, where it is not."""
    return jax.tree.map(lambda out, old, new: out + row.from_data * (new - old), h, data, edited)


def data_prediction(row: Rows, state: SolverState, raw: PyTree) -> PyTree:
    """The data prediction that a raw output means."""
    return _sum((row.data_x, row.data_raw), (state.x, raw))


def advance(gen: AbstractGenerator, row: Rows, state: SolverState, h: PyTree, key) -> SolverState:
    """Take h into the history and combine: the new x and anchor."""
    terms = (state.x, state.anchor, h, *state.history)
    x = _sum(*zip(*((row.M[0, i], terms[i]) for i in row.columns[0])))
    if "d" in row.uses:
        x = jax.tree.map(lambda leaf: leaf + row.d[0].astype(leaf.dtype), x)
    if row.uses & {"c", "snr"}:
        xi = gen.path.noise.sample(key, state.x)
        if "c" in row.uses:
            x = _sum((1.0, row.c), (x, xi))
        if "snr" in row.uses:
            x = _langevin(row, x, h, xi)
    anchor = x
    if "anchor" in row.uses:
        kept = _sum(*zip(*((row.M[1, i], terms[i]) for i in row.columns[1])))
        anchor = jax.tree.map(lambda new, old: jnp.where(row.follows, new, old + row.d[1].astype(old.dtype)), x, kept)
    return SolverState(x, anchor, (h, *state.history)[: len(state.history)])


def shift(x: PyTree, b, x0: PyTree | None) -> PyTree:
    """x + b x0; x itself on a path without origin."""
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


def _average(row: Rows, state: SolverState, h: PyTree) -> PyTree:
    return _sum((1.0, row.E), (h, state.history[0])) if "E" in row.uses else h


def _langevin(row: Rows, x: PyTree, score: PyTree, xi: PyTree) -> PyTree:
    """A step whose size sets the ratio of noise to score; rows without `snr` stay as they are."""
    size = sum(leaf.size for leaf in jax.tree.leaves(score))
    square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(score))
    step = 2 * row.snr**2 * size / jnp.where(row.snr > 0, square, 1.0)
    return _sum((1.0, step, jnp.sqrt(2 * step)), (x, score, xi))


def _sum(coefficients, trees) -> PyTree:
    """The weighted sum of trees, in the dtype of the first."""
    return jax.tree.map(
        lambda *leaves: sum(c * leaf for c, leaf in zip(coefficients, leaves)).astype(leaves[0].dtype), *trees
    )
