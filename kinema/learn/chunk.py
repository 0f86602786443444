"""A chunk of steps as one compiled call."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from kinema.learn.batches import Layout, take
from kinema.learn.gradient import GradientSource
from kinema.learn.step import LearnState, advance
from kinema.motion import trees


class Fixed(eqx.Module):
    """What no step of a run changes: what does not learn, the data on the device, and the rules."""

    static: PyTree
    table: PyTree
    key: PRNGKeyArray
    source: GradientSource
    optimizer: optax.GradientTransformation
    ema: float | None
    layout: Layout | None


class Chunks:
    """Holds the state of a run on the device and moves it by chunks.

    Between chunks the state is a flat list of arrays: taking Equinox modules apart and putting them together for every
    call would cost as much as a few steps of a small network. Chunks of equal length, rules and shapes compile once in
    a process.
    """

    def __init__(self, fixed: Fixed, state: LearnState):
        if fixed.layout is not None:
            fixed, state = eqx.filter_shard((fixed, state), fixed.layout.copied)
        leaves, structure = jax.tree.flatten(fixed)
        self.fixed = fixed
        self._arrays = [leaf if eqx.is_array(leaf) else None for leaf in leaves]
        self._rules = structure, tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
        self._leaves, self._structure = jax.tree.flatten(state)

    @property
    def state(self) -> LearnState:
        """The state after the chunks so far; valid until the next one."""
        return jax.tree.unflatten(self._structure, self._leaves)

    def run(self, inputs: PyTree, length: int) -> tuple[dict[str, Array], Array]:
        """(aux of every step, whether the parameters are finite now). Does not wait for the result."""
        plan = _Plan(*self._rules, self._structure, length)
        self._leaves, aux, finite = _scan(plan, self._arrays, self._leaves, inputs)
        return aux, finite


class _Plan(NamedTuple):
    fixed: Any  # structure
    rules: tuple  # its leaves that are not arrays
    state: Any  # structure
    length: int


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _scan(plan: _Plan, arrays: list, leaves: list, inputs: PyTree):
    both = [rule if array is None else array for array, rule in zip(arrays, plan.rules)]
    fixed: Fixed = jax.tree.unflatten(plan.fixed, both)

    def body(leaves, inputs):
        state = jax.tree.unflatten(plan.state, leaves)
        batch = take(fixed.table, inputs, fixed.layout)
        state, aux = advance(
            state, fixed.static, batch, fixed.key, source=fixed.source, optimizer=fixed.optimizer, ema=fixed.ema
        )
        return jax.tree.leaves(state), aux

    leaves, aux = jax.lax.scan(body, leaves, inputs, plan.length)
    if fixed.layout is not None:
        leaves = jax.lax.with_sharding_constraint(leaves, fixed.layout.copied)
    return leaves, aux, trees.all_finite(jax.tree.unflatten(plan.state, leaves).params)
