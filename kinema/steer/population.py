"""One round of a controlled population: what `steer` repeats, whichever way it runs.

Two kinds of controller share it. Without `kernels` all particles stand before the same row, the last step of the plan
needs no prediction and comes after the rounds. With them every particle has a row of its own; a finished one rests.
"""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PyTree

from kinema.errors import InputError
from kinema.generate.sampling import (
    SolverState,
    advance,
    data_prediction,
    perturb,
    predict,
    push,
    push_edit,
    shift,
)
from kinema.steer.controller import Budget, Controller, Ledger, Move, Particles, Scene
from kinema.steer.moves import Levels, Proposal, propose, restarted
from kinema.steer.resampling import ess

T = TypeVar("T")


class State(eqx.Module):
    """Between two rounds: how many are behind, the particles, their cost and, with `kernels`, what they do next."""

    j: Int[Array, ""]
    particles: Particles
    ledger: Ledger
    ess: Float[Array, " rounds"]
    next: Proposal | None


class Population(eqx.Module):
    """A controller over n particles. `keys` are those of `sample`, one a slot, so that a slot meets the same noise."""

    controller: Controller
    scene: Scene
    levels: Levels | None
    keys: Array
    key: Array  # of the controller
    runner: str = eqx.field(static=True)

    @property
    def size(self) -> int:
        return self.keys.shape[0]

    @property
    def rounds(self) -> int:
        last = self.scene.rows.micro_steps - 1
        return last if self.levels is None else self.controller.rounds(self.scene)

    def key_of(self, j) -> Array:
        """The controller's key in round j."""
        # Without kernels round micro_steps never comes and its key is that of the first prediction.
        key = self.key if self.levels is None else jr.fold_in(self.key, self.scene.rows.micro_steps + 1)
        return jr.fold_in(key, j)

    def begin(self, states: SolverState) -> State:
        """The first predictions, and what the controller makes of them."""
        n, rows = self.size, self.scene.rows
        slots = jnp.arange(n, dtype=jnp.int32)
        age = None if self.levels is None else 0 * slots
        first = Particles(states, states.x, 0 * slots, jnp.zeros(n), slots, self.controller.memory(n), age)
        first = self._run(Population.ask, first, jr.fold_in(self.key, rows.micro_steps), first.row)
        ledger = Ledger.empty().add(evaluations=n * self.scene.generator.calls)
        particles, ledger = self.controller.begin(first, self.scene, ledger)
        plan = self.propose(particles, 0)
        return State(jnp.zeros((), jnp.int32), particles, ledger, jnp.full(self.rounds, jnp.nan), plan)

    def propose(self, particles: Particles, j) -> Proposal | None:
        if self.levels is None:
            return None
        return propose(self.controller, particles, self.scene, jr.split(self.key_of(j), 4)[0])

    def goes_on(self, state: State, limits: Budget | None) -> Bool[Array, ""]:
        """Whether there is a round to run, it is legal and the limits hold it and what `finish` costs after it."""
        going, plan = state.j < self.rounds, state.next
        if plan is not None:
            going &= (plan.fault[0] == 0) & (plan.moves | (plan.row < self.scene.rows.micro_steps)).any()
        if limits is not None:
            going &= ~limits.exceeded(self._cost(state))
        return going

    def round(self, state: State) -> State:
        """Plan, edit, move, arrive and predict, update."""
        particles, plan, rows = state.particles, state.next, self.scene.rows
        key_plan, key_edit, key_arrive, key_update = jr.split(self.key_of(state.j), 4)
        parents = self._parents(particles, key_plan) if plan is None else plan.parents
        particles = particles if parents is None else particles.select(parents)
        if plan is None or self.levels is None:
            particles = self._run(Population.denoise, particles, key_edit)
            particles = self._run(Population.ask, particles, key_arrive, particles.row)
            on_grid = rows.whole[state.j]
        else:
            particles = self._run(Population.move, particles, plan, self.levels, key_edit, state.j)
            asked = self._run(Population.ask, particles, key_arrive, jnp.full(self.size, state.j + 1))
            particles = _where(self._asks(plan), asked, particles)
            on_grid = self.scene.boundaries[particles.row].any()
        ledger = state.ledger.add(evaluations=self._evaluations(plan))

        def update(operands):
            particles, ledger = operands
            data = (
                self._run(Population._predictions, particles)
                if plan is None
                else self._run(Population._best, particles)
            )
            return self.controller.update(particles, data, self.scene, ledger, key_update)

        particles, ledger = self._if(on_grid, update, (particles, ledger))
        sizes = state.ess.at[state.j].set(ess(particles.log_weight))
        return State(state.j + 1, particles, ledger, sizes, self.propose(particles, state.j + 1))

    def end(self, state: State):
        """What `finish` makes of the last samples, or of the data prediction of a particle that has not finished, and
        the particles: ((samples, log_weights, ledger), particles)."""
        key_edit, key_finish = jr.split(self.key_of(self.rounds))
        particles, fixed = state.particles, self.levels is None and self.runner == "scan"
        if fixed:
            particles = self._run(Population.denoise, particles, key_edit)
        elif self.levels is None:
            particles = self._if(
                state.j == self.rounds, lambda p: self._run(Population.denoise, p, key_edit), particles
            )
        x = self._samples(particles) if fixed else self._run(Population._best, particles)
        return self.controller.finish(x, particles, self.scene, state.ledger, key_finish), particles

    def fault(self, state: State) -> Int[Array, " 4"] | None:
        """The illegal move that stopped the rounds, see `Proposal`; zeros if none did."""
        return None if state.next is None else jnp.where(state.j < self.rounds, state.next.fault, 0)

    def ask(self, particles: Particles, key, visits: Int[Array, " n"]) -> Particles:
        """Every particle's next prediction, where it now stands; `visits` number the noise put back."""
        scene, gen = self.scene, self.scene.generator

        def one(state, j, aux, key_particle, cond, x0, key_arrive, visit):
            row = scene.rows[j]
            state = perturb(gen, row, state, jr.fold_in(key_particle, visit))
            if self.controller.arrives:
                x = self.controller.arrive(row.t, shift(state.x, row.centre, x0), aux, scene, key_arrive)
                state = eqx.tree_at(lambda s: s.x, state, shift(x, -row.centre, x0))
            return state, predict(gen, row, state.x, cond, x0)

        keys = jr.split(key, self.size)
        arguments = (particles.state, self._rows(particles), particles.aux, self.keys, scene.cond, scene.x0)
        state, raw = jax.vmap(one, (0, self._rows_axis, 0, 0, 0, 0, 0, 0))(*arguments, keys, visits)
        return eqx.tree_at(lambda p: (p.state, p.raw), particles, (state, raw))

    def denoise(self, particles: Particles, key) -> Particles:
        """Every particle one micro-step on; the prediction on arrival is left to the caller."""

        j = self._rows(particles)
        row = self.scene.rows[j]

        def one(state, raw, aux, key_particle, x0, key_edit):
            h, _ = self._edited(row, state, raw, aux, x0, key_edit)
            return advance(self.scene.generator, row, state, h, jr.fold_in(key_particle, j))

        keys = jr.split(key, self.size)
        state = jax.vmap(one)(particles.state, particles.raw, particles.aux, self.keys, self.scene.x0, keys)
        return eqx.tree_at(lambda p: (p.state, p.row), particles, (state, particles.row + 1))

    def move(self, particles: Particles, plan: Proposal, levels: Levels, key, j) -> Particles:
        """Every particle by its own kernel in round j; the prediction on arrival is left to the caller."""
        scene, gen, kernels = self.scene, self.scene.generator, self.controller.kernels

        def one(state, raw, here, age, aux, key_particle, x0, key_edit, kernel, start, to):
            row, key_step = scene.rows.at(here, age), jr.fold_in(key_particle, j)
            h, data = self._edited(row, state, raw, aux, x0, key_edit)
            ahead = advance(gen, row, state, h, key_step)
            moved = _choose(kernel == Move.HOLD, (state, age), (ahead, age + 1))
            if "renoise" in kernels:
                z = gen.path.noise.sample(jr.split(key_step)[1], state.x)
                back = restarted(scene.rows, levels.renoise(state.x, z, start, to))
                moved = _choose(kernel == Move.RENOISE, (back, 0), moved)
            if "invert" in kernels:
                back = restarted(scene.rows, levels.invert(state.x, shift(data, -1.0, x0), start, to))
                moved = _choose(kernel == Move.INVERT, (back, 0), moved)
            return moved

        keys = jr.split(key, self.size)
        standing = (particles.state, particles.raw, self._rows(particles), particles.age, particles.aux)
        rows = (plan.kernel, plan.start, plan.row)
        state, age = jax.vmap(one)(*standing, self.keys, scene.x0, keys, *rows)
        return eqx.tree_at(lambda p: (p.state, p.row, p.age), particles, (state, plan.row, age))

    def _edited(self, row, state: SolverState, raw: PyTree, aux: PyTree, x0: PyTree | None, key):
        """One particle's new entry of the history and its data prediction, both after `edit`."""
        h, data, scene = push(row, state, raw, x0), data_prediction(row, state, raw, x0), self.scene
        if not self.controller.edits:
            return h, data
        before = scene.decode(data)
        here = scene.decode(shift(state.x, row.centre, x0))
        after = self.controller.edit(row.t, here, before, aux, scene, key)
        changed = jax.tree.map(lambda m, new, old: m + (new - old), data, scene.encode(after), scene.encode(before))
        return push_edit(row, h, data, changed), changed

    def _predictions(self, particles: Particles) -> PyTree:
        """Data predictions in physical units."""

        def one(state, raw, j, x0):
            return self.scene.decode(data_prediction(self.scene.rows[j], state, raw, x0))

        arguments = (particles.state, particles.raw, self._rows(particles), self.scene.x0)
        return jax.vmap(one, (0, 0, self._rows_axis, 0))(*arguments)

    def _samples(self, particles: Particles) -> PyTree:
        """Where particles stand at the end of the plan, in physical units."""
        centre = self.scene.rows.centre_after[-1]
        return jax.vmap(lambda y, x0: self.scene.decode(shift(y, centre, x0)))(particles.state.x, self.scene.x0)

    def _best(self, particles: Particles) -> PyTree:
        """Samples of the finished, data predictions of the others."""
        return _where(self.scene.finished(particles), self._samples(particles), self._predictions(particles))

    def _rows(self, particles: Particles) -> Int[Array, "*n"]:
        """The row before which all stand, so that what a network makes of its time is made once; or with `kernels` that
        of each, for the finished the last one."""
        if self.levels is None:
            return particles.row[0]
        return jnp.minimum(particles.row, self.scene.rows.micro_steps - 1)

    @property
    def _rows_axis(self) -> int | None:
        """The axis of particles in what `_rows` gives."""
        return None if self.levels is None else 0

    def _parents(self, particles: Particles, key) -> Int[Array, " n"] | None:
        parents = self.controller.plan(particles, self.scene, key)
        if isinstance(parents, Move):
            name = type(self.controller).__name__
            raise InputError(f"{name} plans a Move but declares no kernels: name those it uses in `kernels`")
        return parents

    def _asks(self, plan: Proposal) -> Bool[Array, " n"]:
        """Who needs a new prediction."""
        return plan.moves & (plan.row < self.scene.rows.micro_steps)

    def _evaluations(self, plan: Proposal | None) -> Int[Array, ""] | int:
        return self.scene.generator.calls * (self.size if plan is None else self._asks(plan).sum())

    def _cost(self, state: State) -> Ledger:
        """The ledger if the next round is run and then `finish`."""
        plan, arriving = state.next, state.particles
        if plan is not None and plan.parents is not None:
            arriving = arriving.select(plan.parents)
        row = arriving.row + 1 if plan is None else plan.row
        arriving = eqx.tree_at(lambda p: p.row, arriving, row)
        ledger = state.ledger.add(evaluations=self._evaluations(plan))
        for part in self.controller.price(arriving, self.scene):
            ledger = ledger.join(part)
        return ledger

    def _run(self, part: Callable, *arguments):
        """A part of the round that no host code enters: compiled by itself where the whole is not."""
        return _compiled(part, self, *arguments) if self.runner == "host" else part(self, *arguments)

    def _if(self, condition, change: Callable[[T], T], operand: T) -> T:
        if self.runner == "host":
            return change(operand) if bool(condition) else operand
        return jax.lax.cond(condition, change, lambda same: same, operand)


@eqx.filter_jit
def _compiled(part: Callable, population: Population, *arguments):
    return part(population, *arguments)


def _where(mask: Bool[Array, " n"], new: PyTree, old: PyTree) -> PyTree:
    """`new` for the particles in the mask."""
    return jax.vmap(_choose)(mask, new, old)


def _choose(condition, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
