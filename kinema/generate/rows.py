"""Rows: a plan bound to a generator, the arrays that the sampling loop scans over.

A plan speaks of a field (data, noise, velocity), a network predicts another; binding fuses the affine map between them
into the plan's coefficients in float64, so that nothing divides by a small s at run time.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kinema.errors import InputError
from kinema.generate.fields import Affine, Moments, convert
from kinema.generate.generator import AbstractGenerator, moments_in_float64
from kinema.generate.path.path import in_float64
from kinema.generate.solver.plan import Plan


class Rows(eqx.Module):
    """A plan bound to a generator: the arrays that the loop scans over, one leading axis of micro-steps.

    h = P x + Q . raw pushes the model's raw outputs; data = data_x x + data_raw . raw reads them as a data prediction;
    an edit of it by e changes h by from_data e.

    Where the origin is a known condition, x here is y = x - (a + b) x0 = a (x1 - x0) + s z, `centre` being a + b: the
    loop moves what data and origin differ by, so that a common shift of both shifts the samples and nothing else.
    Fields then differ from those of x by multiples of x0, which `h_origin` and `data_origin` put right. `centre_before`
    and `s_before` are those of the grid point that the row leaves; `clock` are two ends of its noise in Brownian time.
    `shallow` has the same columns with a second axis, of the age of the history: see `at`.
    """

    t: Array
    centre: Array
    centre_before: Array
    s_before: Array
    centre_after: Array
    P: Array
    Q: tuple[Array, ...]
    h_origin: Array
    from_data: Array
    data_x: Array
    data_raw: tuple[Array, ...]
    data_origin: Array
    E: Array
    M: Array
    d: Array
    r: Array
    n: Array
    c: Array
    snr: Array
    clock: Array
    after: Array
    whole: Array
    follows: Array
    columns: tuple[tuple[int, ...], tuple[int, ...]] = eqx.field(static=True)
    uses: frozenset[str] = eqx.field(static=True)
    shallow: "Rows | None" = None

    @property
    def micro_steps(self) -> int:
        return self.t.shape[0]

    @property
    def memory(self) -> int:
        """Past outputs that a state carries from one micro-step to the next."""
        return max(self.M.shape[2] - 3, int("E" in self.uses))

    def __getitem__(self, j) -> "Rows":
        """Row j of every column."""
        return jax.tree.map(lambda column: column[j], self)

    def at(self, j, age) -> "Rows":
        """Row j for a state whose history was emptied `age` micro-steps before: of the order that it can bear."""
        if self.shallow is None:
            return self[j]
        depth = jnp.minimum(age, self.shallow.t.shape[1] - 1)
        return jax.tree.map(lambda column: column[j, depth], self.shallow)

    def without_shallow(self) -> "Rows":
        """The rows alone, as the plain loop needs them."""
        return eqx.tree_at(lambda rows: rows.shallow, self, None, is_leaf=lambda leaf: leaf is None)


def bind(plan: Plan, gen: AbstractGenerator, *, shallow: bool = False) -> Rows:
    """Fuse a plan with a generator's parameterization, in float64; `shallow` adds the rows of its fallback.

    Raises:
        InputError: not a plan; the generator lacks the field that the plan extrapolates, or a plan with noise the
            score; the plan was built for another path; a coefficient that is not finite.
    """
    if not isinstance(plan, Plan):
        raise InputError(f"plan must be a Plan, as solver.make('dpmpp-2m', gen.path, 12) gives, got {plan!r}")
    if plan.extrapolates not in gen.fields:
        raise InputError(f"{plan.name} extrapolates {plan.extrapolates!r}; this generator has {sorted(gen.fields)}")
    if (plan.stochastic or plan.S.any()) and "score" not in gen.fields:
        raise InputError(f"{plan.name} adds noise, which needs a score; this generator has {sorted(gen.fields)}")
    if plan.stochastic and not plan.scored and not (gen.path.noise.gaussian and gen.path.origin != "endpoint"):
        raise InputError(
            f"{plan.name} takes the score for -noise / s and the origin for known, which {type(gen.path).__name__} does"
            " not give; solvers that use the score itself are euler-maruyama and predictor_corrector"
        )
    if gen.path.origin == "endpoint" and plan.extrapolates != "velocity":
        raise InputError(
            f"{plan.name} extrapolates {plan.extrapolates!r}, which moves x - b x0; {type(gen.path).__name__} does not"
            " know x0: extrapolate 'velocity', as heun can"
        )
    _check_path(plan, gen.path)
    plans = (*plan.fallback, plan) if shallow else (plan,)
    moments = moments_in_float64(gen.path, plan.t)
    own = _heads(gen.affine(plan.t, plan.extrapolates))
    score = _heads(gen.affine(plan.t, "score")) if "score" in gen.fields else None
    data = _heads(gen.affine(plan.t, "data")) if "data" in gen.fields else own
    with np.errstate(divide="ignore", invalid="ignore"):
        back = (convert("data", plan.extrapolates, moments).Q, convert("data", "score", moments).Q)
        columns = [_columns(each, gen.predicts, own, score, back, moments) for each in plans]
    with np.errstate(invalid="ignore"):
        data_origin = np.where(moments.a != 0, moments.a * data[0], 0.0)
    for each in columns:
        each |= {"centre": moments.a + moments.b}
        each |= {"data_x": data[0], "data_raw": data[1], "data_origin": data_origin}
    uses = {name for name in ("d", "n", "c", "E", "snr") if any(np.any(each[name]) for each in columns)}
    uses |= {"origin"} if gen.path.origin != "none" else set()
    if not uses & {"n", "snr"} and not columns[-1]["c"][np.diff(columns[-1]["clock"])[:, 0] <= 0].any():
        uses |= {"clock"}
    terms = range(plan.M.shape[2])
    into_x, into_anchor = (tuple(i for i in terms if any(each.M[:, out, i].any() for each in plans)) for out in (0, 1))
    uses |= {"anchor"} if 1 in into_x + into_anchor else set()

    def rows(columns: dict[str, np.ndarray], below: Rows | None) -> Rows:
        arrays = jax.tree.map(lambda v: v.astype(jnp.result_type(float)) if v.dtype == float else v, columns)
        return Rows(**jax.device_put(arrays), columns=(into_x, into_anchor), uses=frozenset(uses), shallow=below)

    stacked = jax.tree.map(lambda *each: np.stack(each, 1), *columns)
    return rows(columns[-1], rows(stacked, None) if len(plans) > 1 else None)


def _heads(field: Affine) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """P and the Q of every output."""
    return field.P, field.Q if isinstance(field.Q, tuple) else (field.Q,)


def _columns(plan: Plan, predicts, own, score, back: tuple[np.ndarray, np.ndarray], moments: Moments) -> dict[str, Any]:
    """Arrays of `Rows` in float64, given the maps from raw outputs to the field of the plan and to the score, and the
    slopes of both in the data."""

    def wide(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, *(1,) * (plan.B.ndim - 1))

    def pushed(field: np.ndarray, score: np.ndarray | None) -> np.ndarray:
        total = np.where(plan.B != 0, plan.B * wide(field), 0.0)
        if score is None or not plan.S.any():
            return total
        return total + wide(np.where(plan.S != 0, plan.S * score, 0.0))

    before, clock = _departures(plan), _brownian_time(plan.grid.log_snr)
    centre = plan.grid.a + plan.grid.b
    slopes = {"data": np.ones_like(plan.t), "noise": np.zeros_like(plan.t), "velocity": moments.da}
    moves = plan.whole & (plan.after > before)
    into_score = (None, (None,) * len(own[1])) if score is None else score
    columns = {
        "t": plan.t,
        "centre_before": centre[before],
        "s_before": plan.grid.s[before],
        "centre_after": centre[plan.after],
        "P": plan.A + pushed(own[0], into_score[0]),
        "Q": tuple(pushed(*each) for each in zip(own[1], into_score[1])),
        "h_origin": wide(moments.a) * pushed(own[0], into_score[0]) - plan.B * wide(slopes[plan.extrapolates]),
        "from_data": pushed(*back),
        "clock": np.stack([clock[before], clock[np.where(moves, plan.after, before)]], -1),
        "follows": (plan.M[:, 0] == plan.M[:, 1]).reshape(plan.nfe, -1).all(-1),
        **{name: getattr(plan, name) for name in ("E", "M", "d", "r", "n", "c", "snr", "after", "whole")},
    }
    for name, values in [("P", columns["P"])] + [("Q", one) for one in columns["Q"]]:
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise InputError(
                f"a network that predicts {predicts!r} cannot drive {plan.name} at t={plan.t[row]:g}: its {name} is"
                " not finite there; start or end the grid inside, or predict data or velocity"
            )
    return columns


def _departures(plan: Plan) -> np.ndarray:
    """The grid point on which each row's sample stood last."""
    arrivals = np.where(plan.whole, plan.after, -1)
    return np.maximum.accumulate(np.r_[0, arrivals[:-1]])


def _brownian_time(log_snr: np.ndarray) -> np.ndarray:
    """A clock in [-1, 1] that belongs to the path, not to the grid, and keeps apart what float32 can."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(log_snr), log_snr / (1 + np.abs(log_snr)), np.sign(log_snr))


def _check_path(plan: Plan, path) -> None:
    """Refuse a plan whose grid has other coefficients than the path."""
    grid = plan.grid
    inside = slice(None, -1) if grid.clean else slice(None)
    for name, own, others in zip("abs", (grid.a, grid.b, grid.s), in_float64(path.coefficients, grid.times)):
        wrong = ~np.isclose(own, others, rtol=1e-4, atol=1e-6)[inside]
        if wrong.any():
            i = int(np.argmax(wrong))
            raise InputError(
                f"{plan.name} was built for another path: at t={grid.times[i]:g} it has {name}={own[i]:g}, the"
                f" generator's path {others[i]:g}"
            )
