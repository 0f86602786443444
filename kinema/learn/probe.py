"""Looks at a model while it learns, without touching it."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from kinema.errors import InputError


class Probe(eqx.Module):
    """Calls `measure(model, key) -> PyTree of arrays and numbers` now and then; the results stand in the history.

    `every` is a number of steps, or the steps themselves (say log-spaced); both take effect at the end of a chunk, and
    every probe also sees the last step. `of` picks the weights as they are or their average: turns of learning show
    later in the average. The key depends on the run's key, the name and the step only. `measure` runs on the host
    between chunks; compile it (`eqx.filter_jit`) if it does much.

    >>> Probe("norm", lambda model, key: {"norm": (model**2).sum() ** 0.5}, every=100).due(150, 200)
    True

    Raises:
        InputError: a name with "/" or empty, `every` below 1 or not steps, `of` unknown.
    """

    name: str
    measure: Callable[[PyTree, PRNGKeyArray], Any]
    every: int | Sequence[int] = 500
    of: Literal["model", "ema"] = "model"

    def __check_init__(self):
        if not self.name or "/" in self.name:
            raise InputError(f"a probe needs a name without '/', got {self.name!r}")
        if isinstance(self.every, int):
            fits = self.every >= 1
        else:
            fits = all(isinstance(step, int) and step >= 0 for step in self.every)
        if not fits:
            raise InputError(f"every must be a number of steps >= 1 or a list of steps >= 0, got {self.every!r}")
        if self.of not in ("model", "ema"):
            raise InputError(f"of must be 'model' or 'ema', got {self.of!r}")

    def due(self, before: int, step: int) -> bool:
        """True if a wanted step lies in (before, step]; `before` -1 asks for the start."""
        if isinstance(self.every, int):
            return step // self.every > (before // self.every if before >= 0 else -1)
        return any(before < wanted <= step for wanted in self.every)

    def key(self, key: PRNGKeyArray, step: int) -> PRNGKeyArray:
        """The key of this probe at a step, apart from the keys of the steps."""
        return jr.fold_in(jr.fold_in(key, zlib.crc32(self.name.encode())), step)
