"""A run of rounds on the host: compiled chunks, progress, checkpoints with exact resume, lost members."""

import contextlib
import dataclasses
import hashlib
import os
import time
import warnings
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Shaped

from kinema.errors import InputError, NotFinite
from kinema.learn.batches import key_words
from kinema.learn.checkpoint import Checkpoints
from kinema.learn.fitting import SECONDS
from kinema.learn.history import History, Recorder
from kinema.learn.population import Measure, Population, RoundRule, count_members, member_keys, scan_rounds
from kinema.learn.progress import Interrupt, Progress
from kinema.learn.step import LearnState
from kinema.motion import trees
from kinema.motion.weights import digests, leaf_specs


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What a run of rounds came to.

    `history.metrics` has one row a round: the aux of the members that took part, (rounds, some, ...), who they were
    ("chosen"), whose reply was "finite" and whose was "delivered", and what `measure` saw. `lost` counts by member the
    replies that were not finite.
    """

    server: PyTree
    members: PyTree
    history: History
    round: int
    lost: dict[int, int]


def run_rounds(
    rule: RoundRule,
    server: PyTree,
    members: PyTree,
    data: PyTree = None,
    *,
    rounds: int,
    key: PRNGKeyArray,
    keys: Shaped[Array, "members ..."] | None = None,
    some: int | None = None,
    dropout: float = 0.0,
    measure: Measure | None = None,
    chunk: int = 50,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Rounds:
    """Move a population by `rule` for `rounds` rounds; see `RoundRule` for an example.

    `members` and `data` are trees of arrays with one leading axis of members; either may be empty. In every round
    `some` of them take part (None: all), and each reply is lost with probability `dropout`. `keys` are the members'
    own, by default made from `key`. `measure(server)` is a dictionary of arrays that joins the metrics of a round.

    Rounds run in compiled chunks of `chunk`, which should divide `rounds`. `folder`, `resume` and `checkpoint_every`
    (in rounds) are those of `learn.fit`: a run that was killed goes on to the same bits. Resuming compares the rule's
    fields; numbers hidden inside functions, such as the rate of an optax optimizer, it cannot see.

    Raises:
        InputError: an argument is not acceptable, leading axes differ, or the folder holds a run (another, with
            `resume`) or cannot be written.
        NotFinite: no member that took part in a round gave a finite reply.
        StoreCorrupt, OSError, KeyboardInterrupt: as `learn.fit`.
    """
    count = count_members({"members": members, "data": data}, "members and data")
    some = count if some is None else some
    _check(count, rounds=rounds, chunk=chunk, some=some, checkpoint_every=checkpoint_every)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be in [0, 1), got {dropout}")
    if resume and folder is None:
        raise InputError("resume=True needs the folder of the run")
    key_members, key_rounds = jr.split(key)
    keys = member_keys(key_members, count) if keys is None else keys
    if len(keys) != count:
        raise InputError(f"keys must be one for each of {count} members, got {len(keys)}")
    rule = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, rule)
    fixed = _Fixed(
        rule, data, keys, key_rounds, some, dropout if dropout == 0 else jnp.asarray(dropout, jnp.float32), measure
    )
    state = jax.tree.map(_own, Population(server, members, jnp.zeros((), jnp.int32)))
    recorder = Recorder()

    with contextlib.ExitStack() as stack:
        store = None
        if folder is not None:
            who = _identity(fixed, key)
            store = stack.enter_context(Checkpoints.open(folder, who, resume=resume))
            state = _unpacked(store.restore_or_begin(_packed(state), None, recorder))
        step = int(state.round)
        if step > rounds:
            raise InputError(f"the run in {folder} is at round {step} already, rounds={rounds} is less")
        line = stack.enter_context(Progress(rounds, start=step, show=progress))
        interrupt = stack.enter_context(Interrupt())
        saved, saved_step = time.monotonic(), step
        while step < rounds and not interrupt.requested:
            before, length = step, min(chunk - step % chunk, rounds - step)
            state, seen = _chunk((fixed, length), state)
            step += length
            seen = {name: np.asarray(values) for name, values in seen.items()}
            recorder.extend(seen)
            line.update(step, seen["loss"][seen["finite"]])
            _refuse(seen["finite"], before, store)
            due = time.monotonic() - saved > SECONDS
            if checkpoint_every is not None:
                due = step // checkpoint_every > before // checkpoint_every
            if store is not None and (due or step == rounds):
                store.save(step, _packed(state), recorder)
                saved, saved_step = time.monotonic(), step
        if interrupt.requested:
            _leave(step, saved_step, state, store, recorder)
        if store is not None:
            store.finish(recorder)
    history = recorder.history()
    return Rounds(state.server, state.members, history, step, _lost(history))


class _Fixed(eqx.Module):
    """What no round changes."""

    rule: RoundRule
    data: PyTree
    keys: Array
    key: PRNGKeyArray
    some: int
    dropout: Any  # zero compiles to nothing
    measure: Measure | None


@eqx.filter_jit(donate="all-except-first")
def _chunk(fixed: tuple[_Fixed, int], state: Population) -> tuple[Population, dict[str, Array]]:
    what, length = fixed
    options: dict[str, Any] = {"some": what.some, "dropout": what.dropout, "measure": what.measure}
    return scan_rounds(state, what.data, what.keys, what.key, rule=what.rule, rounds=length, **options)


def _packed(state: Population) -> LearnState:
    """As checkpoints hold it: the server is what learns, the members follow it."""
    return LearnState(state.server, None, state.members, state.round)


def _unpacked(state: LearnState) -> Population:
    return Population(state.params, state.opt_state, state.step)


def _identity(fixed: _Fixed, key: PRNGKeyArray) -> dict[str, Any]:
    """What decides the numbers of the run, as JSON."""
    settings = {"rule": fixed.rule, "measure": fixed.measure, "some": fixed.some, "dropout": fixed.dropout}
    typed = jnp.issubdtype(fixed.keys.dtype, jax.dtypes.prng_key)
    words = jr.key_data(fixed.keys) if typed else fixed.keys
    constants = {
        one.name: getattr(fixed.rule, one.name) for one in dataclasses.fields(fixed.rule) if one.metadata.get("static")
    }
    values = hashlib.sha256("".join(digests(fixed.data).values()).encode()).hexdigest()
    return {
        **{name: _described(leaf) for name, leaf in trees.named_leaves(settings)},
        "kind of rule": f"{type(fixed.rule).__qualname__} {constants or ''}".strip(),
        "versions": f"jax {jax.__version__}",
        "key": np.asarray(key_words(key)).tolist(),
        "keys of the members": hashlib.sha256(np.asarray(words).tobytes()).hexdigest(),
        "data": {name: f"{spec['dtype']} {tuple(spec['shape'])}" for name, spec in leaf_specs(fixed.data).items()},
        "values of the data": values,
    }


def _described(leaf: Any) -> Any:
    if trees.is_array(leaf):
        return float(leaf) if jnp.ndim(leaf) == 0 else next(iter(digests(leaf).values()))
    return getattr(leaf, "__qualname__", None) or (leaf if isinstance(leaf, bool | int | str) else type(leaf).__name__)


def _refuse(finite: np.ndarray, before: int, store: Checkpoints | None) -> None:
    """Stop where a round had no finite reply: the server itself has diverged, and would stand still for ever."""
    bad = np.flatnonzero(~finite.any(1))
    if len(bad):
        kept = "there is no checkpoint" if store is None else f"the last good checkpoint is {store.last}"
        raise NotFinite(f"no member gave a finite reply in round {before + int(bad[0])}; lower the rates; {kept}")


def _leave(step: int, saved: int, state: Population, store: Checkpoints | None, recorder: Recorder) -> None:
    if store is None:
        raise KeyboardInterrupt(f"left at round {step}")
    if step != saved:
        store.save(step, _packed(state), recorder)
    store.finish(recorder)
    raise KeyboardInterrupt(f"left at round {step}; resume=True goes on from {store.last}")


def _lost(history: History) -> dict[int, int]:
    if not len(history):
        return {}
    lost = Counter(history.metrics["chosen"][~history.metrics["finite"]].tolist())
    if lost:
        named = ", ".join(f"{member} ({times} times)" for member, times in sorted(lost.items())[:8])
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        warnings.warn(f"replies that were not finite were dropped, of member {named}{more}", stacklevel=3)
    return dict(sorted(lost.items()))


def _own(leaf):
    """A new buffer, strongly typed: the state is donated."""
    if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
        return jnp.array(leaf, copy=True)
    return jnp.array(leaf, jnp.asarray(leaf).dtype, copy=True)


def _check(count: int, some: int, **counts: int | None) -> None:
    for name, value in {**counts, "some": some}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise InputError(f"{name} must be a whole number >= 1, got {value!r}")
    if some > count:
        raise InputError(f"some must be in 1..{count}, the number of members, got {some}")
