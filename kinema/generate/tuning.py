"""Learned solvers: the coefficients and the grid of a plan, fitted to a fine solution of one's own generator.

Whatever a deterministic plan does in m calls, the point after call j is a combination of its start and of the data
predictions D so far. With a and s of the path at that point and at the start,

    x_j = (s_j / s_0) e^g_j x_0 + (a_j - a_0 s_j / s_0) sum_(k <= j) w_jk D_k

Hand-made plans have g = 0 and rows of w that add to 1. Here g, w and the times of the grid are moved down the gradient
of the squared distance to a teacher's samples, through the sampling loop.

Reference: Shaul et al. 2024 (non-stationary solvers); Watson et al. 2022 (gradients through the sampler).
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema import learn
from kinema.errors import InputError
from kinema.generate.fields import Moments, convert
from kinema.generate.generator import AbstractGenerator, moments_in_float64
from kinema.generate.path.path import Path
from kinema.generate.pilot import mean_squares, rms
from kinema.generate.recommendation import check_shape
from kinema.generate.rows import Rows, bind
from kinema.generate.sampling import advance, as_struct, begin, check_leading, predict, push, sample
from kinema.generate.solver import Plan, grids
from kinema.tables import number

CHUNK = 25  # steps between looks at the starts that are held out
LEAST = 1e-3  # of the mean gap: what is left between the last evaluation and the end of the path


def tune_plan(
    plan: Plan,
    gen: AbstractGenerator,
    teacher: Plan,
    *,
    shape: tuple[int, ...] | PyTree,
    key,
    cond: PyTree | None = None,
    n: int = 512,
    steps: int = 500,
    rate: float = 0.03,
    batch_size: int = 128,
    checkpoint: bool = False,
    progress: bool = True,
) -> Plan:
    """A plan of as many calls as `plan` that comes closer to what `teacher` draws from `gen`.

    Half of n starts teach, in batches of `batch_size`; the other half choose among what was found on the way and the
    plan itself, so on them the result is never worse. It costs n calls of the teacher's and 3 `steps` `batch_size` of
    the plan's. `cond` has a leading axis of n; a guided generator is tuned at its own scale. `checkpoint` computes each
    call again on the way back, for networks whose activations are too large to keep. The result is a plan like others,
    in form of data predictions.

    Example:
        >>> teacher = solver.dpmpp(gen.path, grids.karras(gen.path, 40, high=5.0), order=3)
        >>> tuned = tune_plan(plan, gen, teacher, shape=(2,), key=key, n=32, steps=25, batch_size=16)
        >>> tuned.nfe == plan.nfe
        True

    Raises:
        InputError: a plan or teacher that adds noise or does not fit the generator; a plan with coefficients for each
            coordinate; a generator without a data prediction, or a path with an origin; n < 4, a batch that is larger
            than n / 2, steps < 1 or a rate that is not positive; conditions of another length than n; a wrong shape.
        NotFinite: the error or its gradient stopped being a number.
    """
    _check(plan, gen, teacher, n, steps, rate, batch_size)
    check_leading("cond", cond, n)
    check_shape(gen, shape, cond, None)
    like = as_struct(shape)
    key_noise, key_fit = jr.split(key)
    z = jax.vmap(lambda one: gen.path.noise.sample(one, like))(jr.split(key_noise, n))

    def begin_at(s: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf * jnp.asarray(s, leaf.dtype), z)

    def end(plan: Plan) -> PyTree:
        return sample(gen, plan, n, key=key, shape=shape, cond=cond, start=begin_at(plan.grid.s[0])).x

    taught, held = slice(0, n // 2), slice(n // 2, n)
    target = end(teacher)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(target)):
        raise InputError(f"teacher {teacher.name} gives samples that are not finite; take a finer one")
    form = Form.of(plan, gen)
    pupil = Pupil(gen, form.knobs(), form.template(gen), form, checkpoint)
    untuned = np.asarray(mean_squares(end(plan), target))
    unit = untuned[taught].mean() if np.isfinite(untuned[taught]).all() else 1.0
    data = {"start": begin_at(plan.grid.s[0]), "target": target, "weight": jnp.full(n, 1 / max(float(unit), 1e-30))}
    data |= {} if cond is None else {"cond": cond}
    best: list[Any] = [np.inf, form.knobs()]

    def look(seen: Pupil, key) -> dict[str, float]:
        error = float(_error(seen, jax.tree.map(lambda leaf: leaf[held], data)))
        if error < best[0]:
            best[:] = [error, jax.tree.map(np.array, seen.knobs)]  # the buffers themselves are given away
        return {"error": error}

    learn.fit(
        pupil,
        _loss,
        jax.tree.map(lambda leaf: np.asarray(leaf)[taught], data),
        optimizer=learn.adam(rate, steps),
        steps=steps,
        batch_size=batch_size,
        key=key_fit,
        trainable="knobs/*",
        ema=None,
        chunk=min(CHUNK, steps),
        probes=[learn.Probe("held out", look, every=CHUNK)],
        progress=progress,
    )
    tuned = form.plan(best[1], gen.path)
    before, after = rms(untuned[held]), rms(np.asarray(mean_squares(end(tuned), target))[held])
    if not after < before:
        return plan
    note = f"tuned to {teacher.name}: error {number(before)} before, {number(after)} after, on the starts that chose"
    return replace(tuned, notes=(*plan.notes, note))


class Knobs(eqx.Module):
    """What is learnt of a plan of m calls: g `(m,)`, w `(m, m)`, and logits of the gaps between times."""

    scale: Float[Array, " m"]
    weights: Float[Array, "m m"]
    gaps: Float[Array, " gaps"]


class Form(eqx.Module):
    """A plan as combinations of its start and its data predictions, and all of it that stays as it is.

    `node` is the grid point at which each row evaluates; `excess` what the coefficients of x_0 were off s_j / s_0.
    """

    name: str = eqx.field(static=True)
    node: tuple[int, ...] = eqx.field(static=True)
    after: tuple[int, ...] = eqx.field(static=True)
    whole: tuple[bool, ...] = eqx.field(static=True)
    clean: bool = eqx.field(static=True)
    times: tuple[float, ...] = eqx.field(static=True)
    top: float = eqx.field(static=True)
    excess: tuple[float, ...] = eqx.field(static=True)
    weights: tuple[tuple[float, ...], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, plan: Plan, gen: AbstractGenerator) -> "Form":
        grid = plan.grid
        node = [int(np.argmin(np.abs(grid.times - t))) for t in plan.t]
        if not np.allclose(grid.times[node], plan.t, rtol=0, atol=1e-12) or max(node) > grid.steps - grid.clean:
            raise InputError(f"plan {plan.name} evaluates between the points of its grid, which cannot be tuned")
        (alpha, beta), a, s = unroll(plan, gen.path), grid.a[plan.after], grid.s[plan.after]
        share = a - grid.a[0] * s / grid.s[0]
        top = min(float(gen.path.t_max), 1.0) if grid.clean else float(grid.times[-1])
        return cls(
            plan.name,
            tuple(node),
            tuple(map(int, plan.after)),
            tuple(map(bool, plan.whole)),
            grid.clean,
            tuple(map(float, grid.times)),
            max(top, float(grid.times[-2])),
            tuple(map(float, grid.s[0] * alpha - s)),
            tuple(tuple(map(float, row)) for row in beta / share[:, None]),
        )

    def knobs(self) -> Knobs:
        gaps = np.diff(np.r_[self.times[:-1], self.top])
        gaps = np.maximum(gaps, LEAST * gaps.sum() / len(gaps))
        return Knobs(jnp.zeros(len(self.node)), jnp.asarray(self.weights), jnp.log(jnp.asarray(gaps / gaps.sum())))

    def points(self, gaps, xp: Any = jnp):
        """The times of the grid."""
        weight = xp.exp(gaps - gaps.max())
        inner = self.times[0] + (self.top - self.times[0]) * xp.cumsum(weight / weight.sum())[:-1]
        return xp.concatenate([xp.asarray(self.times[:1]), inner, xp.asarray(self.times[-1:])])

    def combine(self, knobs: Knobs, a, s, xp: Any = jnp):
        """M `(m, 2, 2 + m)` given a and s at the points of the grid."""
        m, after = len(self.node), np.array(self.after)
        alpha = (s[after] * xp.exp(knobs.scale) + xp.asarray(self.excess)) / s[0]
        beta = (a[after] - a[0] * s[after] / s[0])[:, None] * xp.tril(knobs.weights)
        before = xp.concatenate([xp.ones_like(alpha[:1]), alpha[:-1]])
        ratio = alpha / before
        steps = beta - ratio[:, None] * xp.concatenate([xp.zeros_like(beta[:1]), beta[:-1]])
        newest = np.arange(m)[:, None] - np.arange(m)  # prediction k is H(j - k)
        shifted = xp.where(newest >= 0, xp.take_along_axis(steps, np.maximum(newest, 0), 1), 0.0)
        row = xp.concatenate([ratio[:, None], xp.zeros_like(ratio)[:, None], shifted], 1)
        return xp.stack([row, row], 1)

    def plan(self, knobs: Knobs, path: Path) -> Plan:
        """The plan with these knobs, in float64."""
        knobs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), knobs)
        times = self.points(knobs.gaps, np)
        grid = grids.from_times(path, times[:-1] if self.clean else times, clean=self.clean)
        m = len(self.node)
        columns: dict[str, Any] = {name: np.zeros(m) for name in ("A", "S", "E", "n", "c", "snr")}
        columns |= {"B": np.ones(m), "r": np.ones(m), "d": np.zeros((m, 2))}
        columns |= {"t": grid.times[list(self.node)], "after": np.array(self.after), "whole": np.array(self.whole)}
        columns["M"] = self.combine(knobs, grid.a, grid.s, np)
        name = self.name if self.name.endswith(", tuned") else f"{self.name}, tuned"
        return Plan(name, "data", grid, **columns)

    def template(self, gen: AbstractGenerator) -> Rows:
        return bind(self.plan(self.knobs(), gen.path), gen)


class Pupil(eqx.Module):
    """A generator with the plan that is being tuned."""

    gen: AbstractGenerator
    knobs: Knobs
    template: Rows
    form: Form = eqx.field(static=True)
    checkpoint: bool = eqx.field(static=True)

    def rows(self) -> Rows:
        """The plan bound to the generator, differentiable in the knobs."""
        path, form = self.gen.path, self.form
        points = form.points(self.knobs.gaps)
        a, _, s = jax.vmap(path.coefficients)(points)
        s = s.at[-1].set(0.0) if form.clean else s
        t = points[np.array(form.node)]
        moments = jax.vmap(lambda one: Moments.at(path, one))(t)
        data = convert(self.gen.predicts, "data", moments, self.gen.sigma_data)
        Q = data.Q if isinstance(data.Q, tuple) else (data.Q,)
        return replace(self.template, t=t, P=data.P, Q=Q, M=form.combine(self.knobs, a, s))

    def __call__(self, start: PyTree, cond: PyTree | None) -> PyTree:
        """Where one start comes to."""
        rows, gen = self.rows(), self.gen

        def call(state, row):
            raw = predict(gen, row, state.x, cond, None)
            return advance(gen, row, state, push(row, state, raw), None), None

        call_again = jax.checkpoint(call) if self.checkpoint else call
        return jax.lax.scan(call_again, begin(rows, start), rows)[0].x


def unroll(plan: Plan, path: Path) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
    """A deterministic plan as x_j = alpha_j x_0 + sum_k beta_jk D_k: the point after row j by start and predictions."""
    m, moments = plan.nfe, moments_in_float64(path, plan.t)
    field = convert("data", plan.extrapolates, moments)
    unit = np.eye(1 + m)
    x, anchor, history = unit[0], unit[0], [np.zeros(1 + m)] * plan.history
    found = []
    for j in range(m):
        prediction = field.P[j] * x + field.Q[j] * unit[1 + j]
        pushed = plan.A[j] * x + plan.B[j] * prediction + plan.E[j] * history[0]
        history = [pushed, *history[:-1]]
        x, anchor = plan.M[j] @ np.stack([x, anchor, *history])
        found.append(x)
    return np.stack(found)[:, 0], np.stack(found)[:, 1:]


def _loss(pupil: Pupil, batch: PyTree, key) -> tuple[Array, dict]:
    return _error(pupil, batch), {}


@eqx.filter_jit
def _error(pupil: Pupil, batch: PyTree) -> Array:
    """Mean square distance to the target, in units of what it was at first."""

    def one(row: PyTree) -> Array:
        x = pupil(row["start"], row.get("cond"))
        pairs = list(zip(jax.tree.leaves(x), jax.tree.leaves(row["target"])))
        size = sum(leaf.size for leaf, _ in pairs)
        return row["weight"] * sum(jnp.sum((leaf - goal) ** 2) for leaf, goal in pairs) / size

    return jax.vmap(one)(batch).mean()


def _check(plan: Plan, gen: AbstractGenerator, teacher: Plan, n, steps, rate, batch_size) -> None:
    for what, one in (("plan", plan), ("teacher", teacher)):
        if one.stochastic:
            raise InputError(f"{what} {one.name} adds noise; tuning needs deterministic plans")
    if plan.M.ndim > 3 or plan.A.ndim > 1 or plan.d.any() or plan.S.any():
        raise InputError(
            f"plan {plan.name} has coefficients for each coordinate or constants; give one of plain numbers"
        )
    if gen.path.origin != "none" or not gen.path.has_source or "data" not in gen.fields:
        raise InputError(
            f"gen must have a data prediction and a path from noise alone; it has {sorted(gen.fields)} on"
            f" {type(gen.path).__name__}"
        )
    for name, count, least in (("n", n, 4), ("steps", steps, 1), ("batch_size", batch_size, 1)):
        if not (isinstance(count, int | np.integer) and count >= least):
            raise InputError(f"{name} must be a whole number of at least {least}, got {count!r}")
    if batch_size > n // 2:
        raise InputError(f"batch_size must be at most n / 2 = {n // 2}, the starts that teach, got {batch_size}")
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(f"rate must be positive, got {rate}")
    for one in (plan, teacher):
        bind(one, gen)
