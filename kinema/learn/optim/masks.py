"""Which leaves a rule is for: optax's masks, patterns, or a function of a leaf's name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.learn.optimizer import leaf_mask
from kinema.motion import trees

Mask = PyTree | str | Sequence[str] | Callable[..., Any] | None


def leaf_flags(mask: Mask, params: PyTree) -> list[bool]:
    """True for every leaf of `params`, in tree order, that `mask` chooses.

    `mask` is None (every leaf), a pattern or several on leaf names as `learn.Trainable` has them, a function
    `(name, leaf) -> bool`, or what optax takes: a tree of bools of the structure of `params` or a prefix of it, or a
    function `params -> such a tree`.

    >>> import numpy as np
    >>> params = {"bias": np.ones(2), "weight": np.ones((2, 2))}
    >>> leaf_flags(lambda name, leaf: leaf.ndim > 1, params), leaf_flags({"bias": True, "weight": False}, params)
    ([False, True], [True, False])

    Raises:
        InputError: a pattern that no leaf fits, a tree of another structure, a function of one or two arguments that
            is not.
    """
    if mask is None:
        return [True] * len(jax.tree.leaves(params))
    if _patterns(mask):
        mask = leaf_mask(mask)
    if callable(mask):
        needs = _arguments(mask)
        if needs == 2:
            return [bool(mask(name, leaf)) for name, leaf in trees.named_leaves(params)]
        if needs != 1:
            raise InputError(f"mask must be a function of params or of (name, leaf), got one of {needs} arguments")
        mask = mask(params)
    return [bool(flag) for flag in spread(mask, params, "mask")]


def spread(prefix: PyTree, params: PyTree, what: str) -> list[Any]:
    """The value that a prefix tree has for every leaf of `params`.

    Raises:
        InputError: the two trees do not fit.
    """
    try:
        return jax.tree.leaves(jax.tree.broadcast(prefix, params))
    except ValueError as error:
        raise InputError(f"{what} does not have the structure of params: {error}") from error


def _patterns(mask: Mask) -> bool:
    return isinstance(mask, str) or (isinstance(mask, list | tuple) and all(isinstance(one, str) for one in mask))


def _arguments(function: Callable) -> int:
    """How many arguments a function must be given by place."""
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    each = inspect.signature(function).parameters.values()
    return sum(one.kind in places and one.default is inspect.Parameter.empty for one in each)
