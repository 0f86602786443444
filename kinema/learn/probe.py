"""Looks at a run while it learns, without touching it."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.learn.step import LearnState


class Snapshot(eqx.Module):
    """A run at the end of a chunk. `ema` is the model with averaged weights, the model itself if no average is kept."""

    model: PyTree
    ema: PyTree
    state: LearnState

    @classmethod
    def of(cls, state: LearnState, static: PyTree) -> "Snapshot":
        """What a state and the part of the model that does not learn make."""
        model = eqx.combine(state.params, static)
        if state.ema is None:
            return cls(model, model, state)
        average = jax.tree.map(lambda a, x: a.astype(x.dtype), state.ema, state.params)
        return cls(model, eqx.combine(average, static), state)


class Probe(eqx.Module):
    """Calls `measure(model, key) -> PyTree of arrays and numbers` now and then; the results stand in the history.

    `every` is a number of steps, or the steps themselves (say log-spaced); both take effect at the end of a chunk, and
    every probe also sees the last step. `of` picks the weights as they are or their average (turns of learning show
    later in the average); with "run" the measure gets a `Snapshot`, moments of the optimizer and all. The key depends
    on the run's key, the name and the step only. `measure` runs on the host between chunks; compile it
    (`eqx.filter_jit`) if it does much.

    >>> Probe("norm", lambda model, key: {"norm": (model**2).sum() ** 0.5}, every=100).due(150, 200)
    True

    Raises:
        InputError: a name with "/" or empty, `every` below 1 or not steps, `of` unknown.
    """

    name: str
    measure: Callable[[PyTree, PRNGKeyArray], Any]
    every: int | Sequence[int] = 500
    of: Literal["model", "ema", "run"] = "model"

    def __check_init__(self):
        if not self.name or "/" in self.name:
            raise InputError(f"a probe needs a name without '/', got {self.name!r}")
        if isinstance(self.every, int):
            fits = self.every >= 1
        else:
            fits = all(isinstance(step, int) and step >= 0 for step in self.every)
        if not fits:
            raise InputError(f"every must be a number of steps >= 1 or a list of steps >= 0, got {self.every!r}")
        if self.of not in ("model", "ema", "run"):
            raise InputError(f"of must be 'model', 'ema' or 'run', got {self.of!r}")

    def due(self, before: int, step: int) -> bool:
        """True if a wanted step lies in (before, step]; `before` -1 asks for the start."""
        if isinstance(self.every, int):
            return step // self.every > (before // self.every if before >= 0 else -1)
        return any(before < wanted <= step for wanted in self.every)

    def key(self, key: PRNGKeyArray, step: int) -> PRNGKeyArray:
        """The key of this probe at a step, apart from the keys of the steps."""
        return jr.fold_in(jr.fold_in(key, zlib.crc32(self.name.encode())), step)

    def look(self, seen: Snapshot, key: PRNGKeyArray) -> Any:
        """What it measures there; `key` is the key of the run."""
        what = seen if self.of == "run" else getattr(seen, self.of)
        return self.measure(what, self.key(key, int(seen.state.step)))
