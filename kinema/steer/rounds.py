"""`steer`: run a controller over the sampling loop, round by round."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from kinema.errors import BudgetExhausted, InputError
from kinema.generate.codec import Codec
from kinema.generate.generator import AbstractGenerator
from kinema.generate.sampling import (
    advance,
    as_struct,
    begin,
    bind,
    check_leading,
    data_prediction,
    perturb,
    predict,
    push,
    push_edit,
    shift,
)
from kinema.generate.solver.plan import Plan
from kinema.steer.controller import Budget, Controller, Ledger, Particles, Scene
from kinema.steer.resampling import ess


class SteerResult(eqx.Module):
    """Steered samples in physical units, with a leading axis of n, their log-weights and what they cost.

    `ess` is the effective sample size after each whole step, `distinct` the ancestors still alive at the end.
    """

    x: PyTree
    log_weight: Float[Array, " n"]
    ess: Float[Array, " steps"]
    ancestors: Int[Array, " particles"]
    ledger: Ledger

    @property
    def distinct(self) -> int:
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
    host: bool = False,
) -> SteerResult:
    """Draw n samples under a controller.

    The noise is that of `sample` with the same key: slot i starts where sample i does. `codec` puts the controller in
    physical units. `host=True` runs the rounds from Python, for controllers that call code JAX cannot trace.

    Example:
        >>> steer(gen, plan, LawProjection(world), 64, key=key, shape=shape, codec=codec).x

    Raises:
        InputError: n < 1; `cond`, `x0` or `start` of another length; a controller that does not fit the plan.
        BudgetExhausted: the plan needs more than the budget holds, or the controller spent it.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    for name, tree in (("cond", cond), ("x0", x0), ("start", start)):
        check_leading(name, tree, n)
    particles = n * controller.copies
    evaluations = particles * plan.nfe * gen.calls
    if budget is not None and budget.evaluations is not None and evaluations > budget.evaluations:
        raise BudgetExhausted(
            f"{n} samples of {controller.copies} particles and {plan.nfe} steps need {evaluations} network evaluations;"
            f" the budget holds {budget.evaluations}"
        )
    cond, x0, start = (
        jax.tree.map(lambda leaf: jnp.repeat(leaf, controller.copies, 0), tree) for tree in (cond, x0, start)
    )
    scene = Scene(gen, bind(plan, gen), codec, cond, x0)
    controller.check(scene, plan.stochastic)
    run = _steer if host else _steer_compiled
    result = run(controller, scene, key, particles, as_struct(shape), start)
    if budget is not None and bool(budget.exceeded(result.ledger)):
        raise BudgetExhausted(f"spent {_spent(result.ledger)}; the budget holds {budget}")
    return result


def _steer(controller: Controller, scene: Scene, key, n: int, like, start, *, compiled: bool = False) -> SteerResult:
    rows, gen = scene.rows, scene.generator
    key_control = jr.fold_in(key, n)

    def source(i, x0, start):
        key_source, key_steps = jr.split(jr.fold_in(key, i))
        x = gen.path.sample_source(key_source, like, x0) if start is None else start
        return begin(rows, x, x0), key_steps

    def ask(particles: Particles, key) -> Particles:
        """Every particle's next prediction, where it now stands."""

        def one(state, j, aux, key_particle, cond, x0, key_arrive):
            row = rows[j]
            state = perturb(gen, row, state, jr.fold_in(key_particle, j))
            if controller.arrives:
                x = controller.arrive(row.t, shift(state.x, row.b, x0), aux, scene, key_arrive)
                state = eqx.tree_at(lambda s: s.x, state, shift(x, -row.b, x0))
            return state, predict(gen, row, state.x, cond, x0)

        arguments = (particles.state, particles.row, particles.aux, keys, scene.cond, scene.x0, jr.split(key, n))
        state, raw = jax.vmap(one)(*arguments)
        return eqx.tree_at(lambda p: (p.state, p.raw), particles, (state, raw))

    state, keys = jax.vmap(source)(jnp.arange(n), scene.x0, start)
    slots = jnp.arange(n, dtype=jnp.int32)
    particles = Particles(state, state.x, 0 * slots, jnp.zeros(n), slots, controller.memory(n))
    particles = ask(particles, jr.fold_in(key_control, rows.micro_steps))
    ledger = Ledger.empty().add(evaluations=n * gen.calls)
    particles, ledger = controller.begin(particles, scene, ledger)

    def move(particles: Particles, key):
        """Every particle one micro-step on; the prediction on arrival is left to the caller."""

        def one(state, raw, j, aux, key_particle, x0, key_edit):
            row = rows[j]
            h = push(row, state, raw)
            if controller.edits:
                data = data_prediction(row, state, raw)
                before = scene.decode(data)
                here = scene.decode(shift(state.x, row.b, x0))
                after = controller.edit(row.t, here, before, aux, scene, key_edit)
                changed = jax.tree.map(
                    lambda m, new, old: m + (new - old), data, scene.encode(after), scene.encode(before)
                )
                h = push_edit(row, h, data, changed)
            return advance(gen, row, state, h, jr.fold_in(key_particle, j))

        keys_edit = jr.split(key, n)
        return jax.vmap(one)(particles.state, particles.raw, particles.row, particles.aux, keys, scene.x0, keys_edit)

    def data_of(particles: Particles) -> PyTree:
        def one(state, raw, j):
            return scene.decode(data_prediction(rows[j], state, raw))

        return jax.vmap(one)(particles.state, particles.raw, particles.row)

    def round_(carry, j):
        particles, ledger = carry
        key_plan, key_edit, key_arrive, key_update = jr.split(jr.fold_in(key_control, j), 4)
        parents = controller.plan(particles, scene, key_plan)
        particles = particles if parents is None else particles.select(parents)
        moved = (move(particles, key_edit), particles.row + 1)
        particles = ask(eqx.tree_at(lambda p: (p.state, p.row), particles, moved), key_arrive)
        ledger = ledger.add(evaluations=n * gen.calls)

        def whole(operands):
            particles, ledger = operands
            return controller.update(particles, data_of(particles), scene, ledger, key_update)

        operands = (particles, ledger)
        carry = (
            jax.lax.cond(rows.whole[j], whole, lambda same: same, operands)
            if compiled
            else (whole(operands) if bool(rows.whole[j]) else operands)
        )
        return carry, ess(carry[0].log_weight)

    carry, last = (particles, ledger), rows.micro_steps - 1
    if compiled:
        carry, sizes = jax.lax.scan(round_, carry, jnp.arange(last))
    else:
        sizes = []
        for j in range(last):
            carry, size = round_(carry, j)
            sizes.append(size)
        sizes = jnp.array(sizes)
    particles, ledger = carry
    key_edit, key_finish = jr.split(jr.fold_in(key_control, last))
    state = move(particles, key_edit)
    x = jax.vmap(lambda y, x0: scene.decode(shift(y, rows.b_after[-1], x0)))(state.x, scene.x0)
    particles = eqx.tree_at(lambda p: p.state, particles, state)
    x, log_weight, ledger = controller.finish(x, particles, scene, ledger, key_finish)
    return SteerResult(x, log_weight, sizes, particles.ancestor, ledger)


@eqx.filter_jit
def _steer_compiled(*arguments) -> SteerResult:
    return _steer(*arguments, compiled=True)


def _spent(ledger: Ledger) -> str:
    return ", ".join(f"{int(count)} {name}" for name, count in vars(ledger).items())
