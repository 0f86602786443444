"""Many plans by one compiled loop: comparing solvers is mostly compiling them otherwise."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp

from kinema.generate.generator import AbstractGenerator
from kinema.generate.rows import Rows, bind
from kinema.generate.solver import Plan

SHAPED = {"P": 1, "Q": 1, "from_data": 1, "M": 3, "d": 2}  # axes before those of a sample


def bind_alike(plans: Mapping[str, Plan], gen: AbstractGenerator) -> dict[str, Rows]:
    """Plans of one number of rows, bound with the same columns in each, used or not."""
    bound = {name: bind(plan, gen).without_shallow() for name, plan in plans.items()}
    width = max(rows.M.shape[2] for rows in bound.values())
    shape = max((rows.P.shape[1:] for rows in bound.values()), key=len)
    uses = frozenset().union(*(rows.uses for rows in bound.values()))

    def widen(rows: Rows) -> Rows:
        blank = jnp.zeros((*rows.M.shape[:2], width - rows.M.shape[2], *rows.M.shape[3:]), rows.M.dtype)
        rows = replace(rows, M=jnp.concatenate([rows.M, blank], 2), uses=uses, columns=(tuple(range(width)),) * 2)

        def spread(axes: int, column):
            inner = column.shape[axes:]
            column = column.reshape(*column.shape[:axes], *(1,) * (len(shape) - len(inner)), *inner)
            return jnp.broadcast_to(column, (*column.shape[:axes], *shape))

        columns = {
            name: jax.tree.map(lambda column, axes=axes: spread(axes, column), getattr(rows, name))
            for name, axes in SHAPED.items()
        }
        return replace(rows, **columns)

    return {name: widen(rows) for name, rows in bound.items()}
