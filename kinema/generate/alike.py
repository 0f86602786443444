"""Many plans by one compiled loop: comparing solvers is mostly compiling them otherwise."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np

from kinema.generate.generator import AbstractGenerator
from kinema.generate.rows import Rows, bind
from kinema.generate.solver.plan import Plan

SHAPED = {"P": 1, "Q": 1, "h_origin": 1, "from_data": 1, "M": 3, "d": 2}  # axes before those of a sample


def bind_alike(plans: Mapping[str, Plan], gen: AbstractGenerator, *, nfe: int | None = None) -> dict[str, Rows]:
    """Plans bound with the same columns in each, used or not, so that `sample` compiles once for all of them.

    Plans of fewer rows than the longest, or than `nfe`, go on with rows that call the model and change nothing.

    Raises:
        InputError: what `bind` refuses.
    """
    return align({name: bind(plan, gen) for name, plan in plans.items()}, nfe=nfe)


def align(bound: Mapping[str, Rows], *, nfe: int | None = None) -> dict[str, Rows]:
    """The same of rows that are bound already."""
    length = max([nfe or 1, *(rows.micro_steps for rows in bound.values())])
    width = max(rows.M.shape[2] for rows in bound.values())
    shape = max((rows.P.shape[1:] for rows in bound.values()), key=len)
    uses = frozenset().union(*(rows.uses for rows in bound.values()))
    alike = {"uses": uses, "columns": (tuple(range(width)),) * 2, "shallow": None}

    def widen(rows: Rows) -> Rows:
        names = [each.name for each in fields(rows) if each.name not in alike]
        columns: dict[str, Any] = {name: jax.tree.map(np.asarray, getattr(rows, name)) for name in names}
        M = columns["M"]
        blank = np.zeros((*M.shape[:2], width - M.shape[2], *M.shape[3:]), M.dtype)
        columns = _lengthen(columns | {"M": np.concatenate([M, blank], 2)}, length)
        for name, axes in SHAPED.items():
            columns[name] = jax.tree.map(lambda column, axes=axes: _spread(column, axes, shape), columns[name])
        return replace(rows, **jax.device_put(columns), **alike)

    return {name: widen(rows) for name, rows in bound.items()}


def _spread(column: np.ndarray, axes: int, shape: tuple[int, ...]) -> np.ndarray:
    """A column with the shape of one sample after its own axes."""
    inner = column.shape[axes:]
    column = column.reshape(*column.shape[:axes], *(1,) * (len(shape) - len(inner)), *inner)
    return np.broadcast_to(column, (*column.shape[:axes], *shape))


def _lengthen(columns: dict[str, Any], length: int) -> dict[str, Any]:
    """Columns with rows after the last one that stand still."""
    more = length - len(columns["t"])
    if not more:
        return columns
    longer = jax.tree.map(lambda column: np.concatenate([column, np.repeat(column[-1:], more, 0)]), columns)
    for name in ("E", "M", "d", "n", "c", "snr"):
        longer[name][-more:] = 0
    longer["M"][-more:, :, 0] = longer["r"][-more:] = longer["follows"][-more:] = 1
    return longer
