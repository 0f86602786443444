"""What every network refuses, in the same words. Checks read static facts, so they also run under `jit` and `vmap`."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from kinema.errors import InputError


def check_positive(**sizes: Any) -> None:
    """Every size is a positive integer.

    Raises:
        InputError: one is not.
    """
    for name, value in sizes.items():
        if not _is_count(value):
            raise InputError(f"{name} must be a positive integer, got {value!r}")


def as_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` as a tuple of positive integers.

    Raises:
        InputError: it is not one.
    """
    if isinstance(shape, str) or not isinstance(shape, Sequence) or not all(_is_count(n) for n in shape):
        raise InputError(f"shape must hold positive integers, one an axis of the sample, got {shape!r}")
    return tuple(int(n) for n in shape)


def check_sample(x: Array, shape: Sequence[int | None]) -> None:
    """`x` is one real sample of `shape`; None in `shape` stands for any length.

    Raises:
        InputError: another shape (often a batch that was not vmapped) or not floating point.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x must be floating point, got {x.dtype}")
    fits = len(x.shape) == len(shape) and all(want in (None, have) for want, have in zip(shape, x.shape))
    if not fits or 0 in x.shape:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise InputError(f"x must be one sample of shape ({wanted}), got {x.shape}; use jax.vmap for a batch")


def check_label(label: Array, classes: int) -> None:
    """`label` is one integer in 0..classes; its value is checked where it is concrete.

    Raises:
        InputError: not an integer scalar, or out of range.
    """
    if label.shape != () or not jnp.issubdtype(label.dtype, jnp.integer):
        raise InputError(f"cond must be one integer label of shape (), got {label.dtype} of shape {label.shape}")
    if not isinstance(label, Tracer) and not 0 <= int(label) <= classes:
        raise InputError(f"label must be in 0..{classes - 1}, or {classes} for the null label, got {int(label)}")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0
