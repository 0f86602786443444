"""Which solver? Measured on one's own generator.

A pilot of starts is carried by a fine solution and by every deterministic solver on every grid that suits the path
(`zoo`), each with at most the calls that are to be spent; the distance to the fine solution decides. All candidates
share one compiled loop, and candidates that are surely worse than the best leave after each sixteenth of the starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.generate.alike import align
from kinema.generate.candidates import zoo
from kinema.generate.generator import AbstractGenerator
from kinema.generate.pilot import distances, fine_rows, mean_squares, rms
from kinema.generate.rows import Rows, bind
from kinema.generate.sampling import as_struct, check_leading, sample
from kinema.generate.solver import ModelStatistics, Plan, grids
from kinema.tables import Table, number

PARTS = 16  # of the starts, between which candidates leave
TIE = 0.02  # of the error: within it the simpler candidate is taken
SURE = 3.0  # standard errors by which a candidate must be worse to leave
CONVERGED = 0.1  # of the best error: what halving the calls of the fine solution may change
DOUBLINGS = 3
RARE = 3.0  # events that n starts without one may hide, at 95 %
KEPT = 32  # candidates that go on from the first part
RULED = 0.2  # of the squared error: what one start may have before it is said


@dataclass(frozen=True)
class Recommendation:
    """The plan to use, its name, and why.

    `error` is the root mean square distance to the fine solution, over starts and coordinates; `fine_error` what
    halving the calls of the fine solution changes, which bounds its own error. `table` has all that was tried, best
    first; candidates that left early have errors of fewer starts.
    """

    plan: Plan
    name: str
    reason: str
    error: float
    fine_error: float
    table: Table


def recommend(
    gen: AbstractGenerator,
    nfe: int,
    *,
    shape: tuple[int, ...] | PyTree,
    key,
    cond: PyTree | None = None,
    x0: PyTree | None = None,
    candidates: Mapping[str, Plan] | None = None,
    statistics: ModelStatistics | None = None,
    n: int = 1024,
    fine: int = 128,
    batch_size: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Recommendation:
    """The deterministic solver and grid that come closest to the exact flow of `gen` in at most `nfe` calls.

    `shape`, `cond`, `x0` and `batch_size` as in `sample`; `cond` and `x0` carry a leading axis of n, the starts of the
    pilot. `candidates` are plans to choose from instead of the zoo, the simplest first. `fine` are the calls of the
    fine solution, doubled up to three times where it has not converged. `statistics` let DPM-Solver-v3 take part.
    Within 2 % the simpler solver is taken. Costs about n (40 nfe + fine) calls of the generator, n / 16 starts at once;
    `progress` is called with the share of them that is done, 1 at the end.

    Stochastic samplers have no solution to come close to: take `solver.ancestral`, or `dpmpp` with `eta=1`, with as
    many steps as can be afforded, and compare samples.

    Example:
        >>> few = {"euler": solver.euler(path, grid), "dpmpp-2m": solver.dpmpp(path, grid)}
        >>> recommend(gen, 8, shape=(2,), key=key, candidates=few).name
        'dpmpp-2m'

    Raises:
        InputError: nfe < 1; n < 32; fine < 8; `cond` or `x0` of another length than n; a shape that the generator does
            not take; a generator whose fields and path no solver of the zoo can use.
    """
    grids.check_count("nfe", nfe)
    for name, count, least in (("n", n, 2 * PARTS), ("fine", fine, 8)):
        if not (isinstance(count, int | np.integer) and count >= least):
            raise InputError(f"{name} must be a whole number of at least {least}, got {count!r}")
    for name, tree in (("cond", cond), ("x0", x0)):
        check_leading(name, tree, n)
    check_shape(gen, shape, cond, x0)
    plans = zoo(gen.path, nfe, statistics=statistics) if candidates is None else candidates
    rows = align(_usable(gen, nfe, plans), nfe=nfe)
    part, most = n // PARTS, len(rows) + (PARTS - 1) * KEPT

    def told(before: int) -> Callable[[int], None]:
        """Takes how many candidates were carried since `before` of them were, counted as if none left early."""
        return lambda count: None if progress is None else progress((before + count) / most)

    def options(i: int) -> dict[str, Any]:
        """What part i of the starts is drawn by."""
        here = slice(i * part, (i + 1) * part)
        given = {name: jax.tree.map(lambda leaf: leaf[here], tree) for name, tree in (("cond", cond), ("x0", x0))}
        return {"key": jr.fold_in(key, i), "shape": shape, "batch_size": batch_size, **given}

    found, exact, apart, fine, fine_error = _first_part(gen, rows, part, options(0), fine, told(0))
    squares = {name: [found[name]] for name in rows}
    alive = list(squares)
    for i in range(1, PARTS):
        alive = _still_in(alive, squares, apart)[:KEPT]
        if len(alive) == 1:
            break
        truth, left = sample(gen, exact, part, **options(i)).x, {name: rows[name] for name in alive}
        for name, more in distances(gen, left, truth, told=told(len(rows) + (i - 1) * KEPT), **options(i)).items():
            squares[name].append(more)
    told(most)(0)
    errors = {name: rms(np.concatenate(parts)) for name, parts in squares.items()}
    return _verdict(plans, squares, errors, _still_in(alive, squares, apart), fine, fine_error)


def check_shape(gen: AbstractGenerator, shape: Any, cond: PyTree | None, x0: PyTree | None) -> None:
    """InputError where the model fails on one sample of this shape, or returns another."""
    like, first = as_struct(shape), jax.tree.map(lambda leaf: leaf[0], (cond, x0))
    try:
        out = jax.eval_shape(lambda x: gen(0.5, x, first[0], x0=first[1]), like)
    except InputError:
        raise
    except Exception as error:  # whatever a network does with a sample that it was not made for
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"shape {shape} is not what the generator takes: {reason}") from error
    field = next(one for one in out if one is not None)
    found, wanted = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (field, like))
    if found != wanted:
        raise InputError(f"shape {shape} is not what the generator takes: it returns {found}")


def _usable(gen: AbstractGenerator, nfe: int, plans: Mapping[str, Plan]) -> dict[str, Rows]:
    """The plans that the generator can drive, bound to it."""
    for name, plan in plans.items():
        if plan.nfe > nfe or plan.stochastic:
            what = "adds noise" if plan.stochastic else f"takes {plan.nfe} calls"
            raise InputError(f"candidates must be deterministic and of at most nfe={nfe} calls; {name!r} {what}")
    found, refused = {}, "there are none"
    for name, plan in plans.items():
        try:
            found[name] = bind(plan, gen)
        except InputError as error:
            refused = str(error)
    if not found:
        raise InputError(f"gen on {type(gen.path).__name__} can drive none of the candidates: {refused}")
    return found


def _first_part(gen, rows: Mapping[str, Rows], part: int, options, calls: int, told: Callable[[int], None]):
    """The starts that all carry, the fine solution, how far samples are apart; its calls are doubled as needed."""
    for doubling in range(DOUBLINGS + 1):
        fine = fine_rows(gen, calls)
        coarse, truth = (sample(gen, one, part, **options).x for one in (fine["half"], fine["whole"]))
        found = distances(gen, rows, truth, told=told, **options)
        change, best = rms(mean_squares(coarse, truth)), min(map(rms, found.values()))
        if change <= CONVERGED * best or doubling == DOUBLINGS:
            break
        calls *= 2
    apart = float(mean_squares(truth, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), truth)).mean())
    return found, fine["whole"], apart, calls, change


def _still_in(alive: list[str], squares: Mapping[str, list[np.ndarray]], apart: float) -> list[str]:
    """Those that are not surely worse than the best, start by start.

    A start that ends elsewhere adds `apart`, the square of the distance of two samples; 3 such events in n starts may
    just not have been seen yet.
    """
    alive = sorted(alive, key=lambda name: np.concatenate(squares[name]).mean())
    best = np.concatenate(squares[alive[0]])

    def stays(name: str) -> bool:
        excess = np.concatenate(squares[name]) - best
        if not np.isfinite(excess).all():
            return False
        margin = SURE * excess.std(ddof=1) / len(excess) ** 0.5 + RARE * apart / len(excess)
        return bool(excess.mean() <= max(margin, ((1 + TIE) ** 2 - 1) * best.mean()))

    return [alive[0], *(name for name in alive[1:] if stays(name))]


def _verdict(plans, squares, errors: dict[str, float], alive: list[str], fine: int, fine_error: float):
    """The simplest of those within a tie of the best, and a sentence about it."""
    ranked = sorted(errors, key=errors.__getitem__)
    ranked = [*alive, *(name for name in ranked if name not in alive)]
    best = errors[alive[0]]
    if not np.isfinite(best):
        raise InputError("gen gives no finite sample under any solver of the zoo; see whether its network is finite")
    name = next(name for name in plans if name in alive and errors[name] <= (1 + TIE) * best)
    other = next((one for one in ranked if one != name), None)
    rows = [[one, plans[one].nfe, sum(map(len, squares[one])), errors[one]] for one in ranked]
    table = Table("Distance to the fine solution", ["solver", "calls", "starts", "error"], rows)
    reason = f"{name} is {number(errors[name])} from the fine solution in {plans[name].nfe} calls"
    if other is not None:
        reason += f", the runner-up {other} {number(errors[other])}"
    euler = min((one for one in errors if one.startswith("euler")), key=errors.__getitem__, default=None)
    if euler is not None and name != euler:
        reason += f", Euler at its best {number(errors[euler])}"
    if name != alive[0]:
        reason += f"; {alive[0]} is nearer by less than {TIE:.0%} and less simple"
    own = np.concatenate(squares[name])
    if own.max() > RULED * own.sum():
        reason += f"; one start has {own.max() / own.sum():.0%} of the square of this error: raise n to be sure"
    if fine_error > CONVERGED * best:
        reason += f"; but the fine solution of {fine} calls has itself not converged, to {number(fine_error)}"
    return Recommendation(plans[name], name, reason + ".", errors[name], fine_error, table)
