"""`steer`: run a controller over the sampling loop, round by round."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from kinema.errors import BudgetExhausted, InputError, unknown
from kinema.generate.codec import Codec
from kinema.generate.generator import AbstractGenerator
from kinema.generate.sampling import as_struct, begin, bind, check_leading, check_samples, source
from kinema.generate.solver.plan import Plan
from kinema.steer.controller import Budget, Controller, Ledger, Scene
from kinema.steer.moves import Levels, check_kernels, fault_message
from kinema.steer.population import Population, State

RUNNERS = ("scan", "while", "host")


class SteerResult(eqx.Module):
    """Steered samples in physical units, with a leading axis of n, their log-weights and what they cost.

    `ess` is the effective sample size after each round, NaN after the last that was run; `ancestors` says where each
    particle came from and `finished` whether it ran the whole plan: the x of one that did not is its data prediction.
    """

    x: PyTree
    log_weight: Float[Array, " n"]
    ess: Float[Array, " rounds"]
    ancestors: Int[Array, " particles"]
    ledger: Ledger
    finished: Bool[Array, " particles"]

    @property
    def distinct(self) -> int:
        """Ancestors still alive at the end."""
        return len(np.unique(np.asarray(self.ancestors)))


def steer(
    gen: AbstractGenerator,
    plan: Plan,
    controller: Controller,
    n: int,
    *,
    key,
    shape: tuple[int, ...] | PyTree,
    codec: Codec | None = None,
    cond: PyTree | None = None,
    x0: PyTree | None = None,
    start: PyTree | None = None,
    budget: Budget | None = None,
    runner: str = "scan",
) -> SteerResult:
    """Draw n samples under a controller.

    The noise is that of `sample` with the same key: slot i starts where sample i does. `codec` puts the controller in
    physical units. `runner` says how the rounds are run:

    - "scan": a fixed count, compiled, differentiable in reverse; a budget must hold all of it;
    - "while": compiled, until all particles have finished or before the first round that would pass a limit of the
      budget; what has not finished by then is said to be so in the result;
    - "host": the same from Python, for controllers that call code JAX cannot trace.

    Example:
        >>> steer(gen, plan, LawProjection(world), 64, key=key, shape=shape, codec=codec).x

    Raises:
        InputError: n < 1; an unknown runner; `cond`, `x0` or `start` of another length; a controller that does not fit
            the plan, or that plans a move which is not allowed.
        BudgetExhausted: the budget does not hold the first predictions, or with "scan" the whole plan; or the
            controller spent more than it said.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if runner not in RUNNERS:
        raise InputError(unknown("runner", runner, RUNNERS))
    for name, tree in (("cond", cond), ("x0", x0), ("start", start)):
        check_leading(name, tree, n)
    like = as_struct(shape)
    for name, tree in (("x0", x0), ("start", start)):
        check_samples(name, tree, like)
    check_kernels(controller, plan, gen.path)
    particles = n * controller.copies
    _check_budget(budget, gen, plan, particles, whole=runner == "scan" and not controller.kernels)
    cond, x0, start = (
        jax.tree.map(lambda leaf: jnp.repeat(leaf, controller.copies, 0), tree) for tree in (cond, x0, start)
    )
    scene = Scene(gen, bind(plan, gen, shallow=True), codec, cond, x0)
    if controller.edits and "data" not in gen.fields:
        raise InputError(
            f"{type(controller).__name__} edits the data prediction; this generator has only {sorted(gen.fields)}"
        )
    controller.check(scene, plan.stochastic)
    if controller.kernels and controller.rounds(scene) < 1:
        raise InputError(f"{type(controller).__name__} must take at least 1 round, got {controller.rounds(scene)}")
    levels = Levels.of(plan, gen.path) if controller.kernels else None
    limits = None if runner == "scan" or budget is None else jax.tree.map(jnp.asarray, budget)
    run = _steer if runner == "host" else _steer_compiled
    result, fault = run(controller, scene, levels, key, particles, like, start, limits, runner)
    if isinstance(fault, Tracer):
        result = eqx.error_if(
            result, fault[0] > 0, "the controller planned an illegal move; run steer outside jit and grad to see which"
        )
    elif fault is not None and fault[0] > 0:
        raise InputError(fault_message(np.asarray(fault)))
    if budget is not None and bool(budget.exceeded(result.ledger)):
        raise BudgetExhausted(f"spent {_spent(result.ledger)}; the budget holds {budget}")
    return result


def _steer(
    controller: Controller, scene: Scene, levels: Levels | None, key, n: int, like, start, limits, runner: str
) -> tuple[SteerResult, Int[Array, " 4"] | None]:
    origins = scene.x0
    if scene.generator.path.origin == "endpoint":  # drawn from, then unknown
        scene = replace(scene, x0=None)

    def first(i, x0, known, start):
        key_source, key_steps = jr.split(jr.fold_in(key, i))
        x = source(scene.generator, scene.rows, key_source, like, x0) if start is None else start
        return begin(scene.rows, x, known), key_steps

    states, keys = jax.vmap(first)(jnp.arange(n), origins, scene.x0, start)
    population = Population(controller, scene, levels, keys, jr.fold_in(key, n), runner)
    state = population.begin(states)

    def goes_on(state: State) -> Bool[Array, ""]:
        return population.goes_on(state, limits)

    def round_(state: State) -> State:
        return population.round(state)

    def perhaps(state: State) -> State:
        return jax.lax.cond(goes_on(state), round_, lambda same: same, state)

    if runner == "host":
        while bool(goes_on(state)):
            state = round_(state)
    elif runner == "while":
        state = jax.lax.while_loop(goes_on, round_, state)
    else:
        every = perhaps if controller.kernels else round_
        state, _ = jax.lax.scan(lambda state, _: (every(state), None), state, length=population.rounds)
    (x, log_weight, ledger), particles = population.end(state)
    finished = scene.finished(particles)
    result = SteerResult(x, log_weight, state.ess, particles.ancestor, ledger, finished)
    return result, population.fault(state)


_steer_compiled = eqx.filter_jit(_steer)


def _check_budget(budget: Budget | None, gen: AbstractGenerator, plan: Plan, particles: int, *, whole: bool):
    """Refuse a budget that does not hold the first predictions or, if `whole`, those of all rows."""
    steps = plan.nfe if whole else 1
    needed = particles * steps * gen.calls
    if budget is not None and budget.evaluations is not None and needed > budget.evaluations:
        raise BudgetExhausted(
            f"{particles} particles and {steps} steps need {needed} network evaluations; the budget holds"
            f" {budget.evaluations}"
        )


def _spent(ledger: Ledger) -> str:
    return ", ".join(f"{int(count)} {name}" for name, count in vars(ledger).items())
