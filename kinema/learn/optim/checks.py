"""What every rule asks of its numbers and of the leaves that it moves."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.motion import trees


def demand(name: str, value: Any, fits: Callable[[Any], Any], accepted: str) -> None:
    """Refuse a number that does not fit. A schedule, or a number under tracing, is not known yet and passes.

    Raises:
        InputError: `fits(value)` is false.
    """
    if not (callable(value) or isinstance(value, Tracer) or fits(value)):
        raise InputError(f"{name} must be {accepted}, got {value}")


def real_leaves(rule: str, params: PyTree) -> None:
    """Refuse leaves that a rule cannot move.

    Raises:
        InputError: a leaf that is not of real floating numbers, by name.
    """
    for name, leaf in trees.named_leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(f"leaf {name}: {rule} moves real floating numbers, got {leaf.dtype}")


def with_params(rule: str, params: PyTree) -> PyTree:
    """`params`, which optax hands on only if `update` was given them.

    Raises:
        InputError: there are none.
    """
    if params is None:
        raise InputError(f"{rule} needs params: call update(grads, state, params)")
    return params
