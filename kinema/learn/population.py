"""A population on one leading axis, moved in rounds: local steps, messages, a rule of the server.

    member_i, message_i = local(server, member_i, data_i, key_i)      for the members that take part, by `vmap`
    server              = serve(server, messages, delivered)          the messages stacked, those that are lost zero

Clients of a federation, tasks of meta-learning, seeds, settings and pools of models are all such members; what differs
is the rule. A member whose message or new state is not finite is left as it was, and counted.
"""

import abc
from collections.abc import Callable, Sequence
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from kinema.errors import InputError
from kinema.learn.gradient import GradientSource
from kinema.learn.step import advance
from kinema.motion import trees

RESERVED = ("chosen", "delivered", "finite")
Measure = Callable[[PyTree], dict[str, Array]]


class RoundRule(eqx.Module):
    """What happens in a round, for one member and for the server. Called in compiled code; trees hold arrays only.

    Settings are ordinary fields: a run is resumed with equal ones only. Meta-learning by Reptile [Nichol et al. 2018]:

    >>> from kinema.learn.rounds import run_rounds
    >>> class Reptile(RoundRule):
    ...     rate: float
    ...     def local(self, server, member, data, key):
    ...         adapted = server - 0.1 * (server - data)  # a step down |w - task|² / 2
    ...         return member, adapted - server, {"loss": jnp.sum((server - data) ** 2) / 2}
    ...     def serve(self, server, messages, delivered):
    ...         return server + self.rate * average(messages, delivered)
    >>> tasks = jnp.array([[0.0, 2.0], [2.0, 4.0]])
    >>> run = run_rounds(Reptile(5.0), jnp.zeros(2), (), tasks, rounds=40, key=jr.key(0))
    >>> run.server.round().tolist()
    [1.0, 3.0]
    """

    @abc.abstractmethod
    def local(
        self, server: PyTree, member: PyTree, data: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        """(member, message, aux) of one member; aux has the scalar "loss" and any metrics.

        `key` is the member's own and the same in every round, so fold in something that changes.
        """

    @abc.abstractmethod
    def serve(self, server: PyTree, messages: PyTree, delivered: Bool[Array, " some"]) -> PyTree:
        """The server after a round. Not heeded where nothing was delivered."""


class Independent(RoundRule):
    """Every member learns alone, by `learn.advance`: seeds, settings, an ensemble.

    Members are `LearnState`s, the data of each is its batch, and a member's run is the one that `learn.fit` makes
    without data from the same key.

    >>> from kinema.learn import BackPropagation, begin
    >>> from kinema.learn.rounds import run_rounds
    >>> source = BackPropagation(lambda w, batch, key: ((w - batch) ** 2, {}))
    >>> starts = jax.vmap(lambda w: begin(optax.sgd(0.5), w, None))(jnp.zeros(3))
    >>> rule = Independent(source, optax.sgd(0.5), steps=2)
    >>> run_rounds(rule, (), starts, jnp.arange(3.0), rounds=1, key=jr.key(0)).members.params.tolist()
    [0.0, 1.0, 2.0]
    """

    source: GradientSource
    optimizer: optax.GradientTransformation
    steps: int  # a round
    static: PyTree = None
    ema: float | None = eqx.field(static=True, default=None)

    def local(self, server, member, data, key):
        def step(state, _):
            return advance(state, self.static, data, key, source=self.source, optimizer=self.optimizer, ema=self.ema)

        member, aux = jax.lax.scan(step, member, length=self.steps)
        return member, (), {name: values[-1] for name, values in aux.items()}

    def serve(self, server, messages, delivered):
        return server


class Population(eqx.Module):
    """Between two rounds: the server's state, the members' stacked on a leading axis, and how many rounds passed."""

    server: PyTree
    members: PyTree
    round: Int[Array, ""]


def stack(members: Sequence[PyTree]) -> PyTree:
    """Members of one structure on a leading axis.

    >>> stack([{"w": jnp.zeros(3)}, {"w": jnp.ones(3)}])["w"].shape
    (2, 3)

    Raises:
        InputError: no members, or leaves of different shapes (one is named).
    """
    if not members:
        raise InputError("members is empty; give at least one")
    first = trees.leaf_names(members[0])
    for index, member in enumerate(members):
        others = trees.leaf_names(member)
        if others.keys() != first.keys():
            raise InputError(f"member {index} has other leaves than member 0: {sorted(others.keys() ^ first.keys())}")
        for name, leaf in others.items():
            if jnp.shape(leaf) != jnp.shape(first[name]):
                shapes = jnp.shape(leaf), jnp.shape(first[name])
                raise InputError(f"leaf {name} of member {index} has shape {shapes[0]}, that of member 0 {shapes[1]}")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def unstack(members: PyTree) -> list[PyTree]:
    """The inverse of `stack`.

    Raises:
        InputError: as `count_members`.
    """
    return [jax.tree.map(lambda x, i=index: x[i], members) for index in range(count_members(members))]


def replicate(member: PyTree, count: int) -> PyTree:
    """`count` copies of one member on a leading axis.

    >>> replicate(jnp.arange(2), 3).shape
    (3, 2)
    """
    return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], count, 0), member)


def count_members(tree: PyTree, what: str = "members") -> int:
    """The length of the leading axis, the same in every leaf.

    Raises:
        InputError: no arrays, no members, or a leaf with another leading axis, which is named.
    """
    sizes = {name: (len(leaf) if jnp.ndim(leaf) else None) for name, leaf in trees.leaf_names(tree).items()}
    if not sizes:
        raise InputError(f"{what} hold no arrays, so they cannot be counted")
    first, count = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size is None:
            raise InputError(f"{what} must have one leading axis; leaf {name} is a single number")
        if size != count:
            raise InputError(
                f"{what} must have the same leading axis in every leaf: {first} has {count}, {name} {size}"
            )
    if not count:
        raise InputError(f"{what} are none: the leading axis has length 0")
    return count


def member_keys(key: PRNGKeyArray, count: int) -> Shaped[Array, "count ..."]:
    """One key a member, which does not depend on how many there are."""
    return jax.vmap(lambda index: jr.fold_in(key, index))(jnp.arange(count))


def choose_members(key: PRNGKeyArray, round: Int[Array, ""] | int, count: int, some: int) -> Int[Array, " some"]:
    """Which `some` of `count` members take part in a round, in rising order; each set is equally likely."""
    if some == count:
        return jnp.arange(count)
    return jnp.sort(jr.choice(jr.fold_in(key, round), count, (some,), replace=False))


def average(messages: PyTree, weights: Shaped[Array, " some"]) -> PyTree:
    """Σ w m / Σ w over the leading axis; zero where all weights are zero."""
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1) / total.astype(x.dtype), messages)


def advance_round(
    state: Population,
    data: PyTree,
    keys: Shaped[Array, "members ..."],
    key: PRNGKeyArray,
    *,
    rule: RoundRule,
    some: int | None = None,
    dropout: float | Float[Array, ""] = 0.0,
) -> tuple[Population, dict[str, Array]]:
    """The population after one round, and what was seen. Pure: it may be scanned, mapped over settings, differentiated.

    `data` and `keys` are the members'; `key` decides who takes part, the same key in every round. The metrics hold the
    aux of the members that took part, (some, ...), their indices "chosen", and who was "finite" and "delivered".

    Raises:
        InputError: while tracing, if the aux has no "loss" or a reserved name.
    """
    count = len(keys)
    some = count if some is None else some
    key_choice, key_absence = jr.split(key)
    chosen = choose_members(key_choice, state.round, count, some)

    def taken(tree):
        return tree if some == count else jax.tree.map(lambda x: x[chosen], tree)

    def one(member, data, key):
        member, message, aux = rule.local(state.server, member, data, key)
        if "loss" not in aux or set(RESERVED) & set(aux):
            raise InputError(f"the aux of a rule must hold 'loss' and none of {', '.join(RESERVED)}, got {sorted(aux)}")
        return member, message, aux, trees.all_finite((member, message))

    before = taken(state.members)
    after, messages, aux, finite = jax.vmap(one)(before, taken(data), taken(keys))
    delivered = finite
    if not (isinstance(dropout, int | float) and dropout == 0):
        delivered &= ~jr.bernoulli(jr.fold_in(key_absence, state.round), dropout, (some,))
    messages = jax.tree.map(lambda x: jnp.where(_wide(delivered, x), x, jnp.zeros_like(x)), messages)
    served = rule.serve(state.server, messages, delivered)
    server = jax.tree.map(lambda new, old: jnp.where(delivered.any(), new, old), served, state.server)
    kept = jax.tree.map(lambda new, old: jnp.where(_wide(delivered, new), new, old), after, before)
    members = kept if some == count else jax.tree.map(lambda x, new: x.at[chosen].set(new), state.members, kept)
    seen = {**aux, "chosen": chosen, "finite": finite, "delivered": delivered}
    return Population(server, members, state.round + 1), seen


def scan_rounds(
    state: Population,
    data: PyTree,
    keys: Shaped[Array, "members ..."],
    key: PRNGKeyArray,
    *,
    rule: RoundRule,
    rounds: int,
    some: int | None = None,
    dropout: float | Float[Array, ""] = 0.0,
    measure: Measure | None = None,
) -> tuple[Population, dict[str, Array]]:
    """Several rounds as one program; metrics with a leading axis of rounds. `measure(server)` adds metrics to each."""

    def body(state, _):
        state, seen = advance_round(state, data, keys, key, rule=rule, some=some, dropout=dropout)
        return state, seen if measure is None else seen | measure(state.server)

    return cast(tuple, jax.lax.scan(body, state, length=rounds))


def _wide(flags: Bool[Array, " some"], like: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))
