"""Which leaves of a model learn: a filter on their paths."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from kinema.errors import InputError, unknown
from kinema.motion import trees

Where = str | Sequence[str] | Callable[[str, Any], bool] | None


class Trainable(eqx.Module):
    """Splits a model into the parameters that learn and the rest.

    `where` is None (every floating or complex array), a pattern or several on leaf names as `trees.leaf_names` gives
    them ("layers/*/bias"; `*` crosses "/"), or a function `(name, leaf) -> bool`. Integers, random keys and settings
    never learn.

    >>> import equinox as eqx, jax.random as jr
    >>> Trainable("*/bias").names(eqx.nn.MLP(2, 1, 8, 1, key=jr.key(0)))
    ['layers/0/bias', 'layers/1/bias']

    Raises:
        InputError: `where` is something else.
    """

    where: Where = eqx.field(static=True, default=None)

    def __check_init__(self):
        where = [self.where] if isinstance(self.where, str) else self.where
        patterns = isinstance(where, Sequence) and len(where) > 0 and all(isinstance(one, str) for one in where)
        if not (where is None or callable(where) or patterns):
            raise InputError(f"where must be None, a pattern, patterns or a function (name, leaf), got {self.where!r}")

    def names(self, model: PyTree) -> list[str]:
        """Names of the leaves that learn, in tree order.

        Raises:
            InputError: a pattern that matches no leaf that can learn, or nothing to learn at all.
        """
        able = {name: leaf for name, leaf in trees.leaf_names(model).items() if trees.is_inexact(leaf)}
        if self.where is None:
            chosen = list(able)
        elif callable(self.where):
            chosen = [name for name, leaf in able.items() if self.where(name, leaf)]
        else:
            patterns = [self.where] if isinstance(self.where, str) else self.where
            for pattern in patterns:
                if not fnmatch.filter(able, pattern):
                    raise InputError(unknown("trainable leaf", pattern, able))
            chosen = [name for name in able if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        if not chosen:
            raise InputError("the model has nothing to learn: no floating or complex array was chosen")
        return chosen

    def split(self, model: PyTree) -> tuple[PyTree, PyTree]:
        """(params, static): two trees of the model's structure, `None` where the other has the leaf.

        `eqx.combine(params, static)` is the model again.

        Raises:
            InputError: as `names`.
        """
        chosen = set(self.names(model))
        flags = [name in chosen for name, _ in trees.named_leaves(model)]
        return eqx.partition(model, jax.tree.unflatten(jax.tree.structure(model), flags))
