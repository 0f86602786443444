"""Many plans by one compiled loop: comparing solvers is mostly compiling them otherwise."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from kinema.errors import InputError
from kinema.generate.fields import Affine
from kinema.generate.generator import AbstractGenerator
from kinema.generate.noise import NoiseLaw
from kinema.generate.path.path import Path
from kinema.generate.rows import Rows, bind
from kinema.generate.solver.plan import Plan

SHAPED = {"P": 1, "Q": 1, "from_data": 1, "M": 3, "d": 2}  # axes before those of a sample


def bind_alike(plans: Mapping[str, Plan], gen: AbstractGenerator, *, nfe: int | None = None) -> dict[str, Rows]:
    """Plans bound with the same columns in each, used or not, so that `sample` compiles once for all of them.

    Plans of fewer rows than the longest, or than `nfe`, go on with rows that call the model and change nothing.

    Raises:
        InputError: what `bind` refuses.
    """
    described = Described(gen)
    return align({name: bind(replace(plan, fallback=()), described) for name, plan in plans.items()}, nfe=nfe)


class Described(AbstractGenerator):
    """What binding asks of a generator; what it asked before is not computed again, which is most of its time."""

    path: Path
    predicts: str | tuple[str, str]
    sigma_data: float
    known: dict[tuple[bytes, str], Affine] = eqx.field(static=True)

    def __init__(self, gen: AbstractGenerator):
        self.path, self.predicts, self.sigma_data = Compiled(gen.path), gen.predicts, gen.sigma_data
        self.known = {}

    def affine(self, t, wanted: str) -> Affine:
        asked = (t.tobytes(), wanted)
        if asked not in self.known:
            self.known[asked] = super().affine(t, wanted)
        return self.known[asked]

    @property
    def calls(self) -> int:
        return 0

    def raw(self, t, x: PyTree, cond: PyTree | None = None, x0: PyTree | None = None) -> PyTree:
        raise InputError("a description of a generator has no model to call; use the generator itself")


class Compiled(Path):
    """A path whose functions of time are compiled programs: the same numbers, sooner where they are asked for often."""

    path: Path
    noise: NoiseLaw
    origin: str = eqx.field(static=True)
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)

    def __init__(self, path: Path):
        self.path, self.noise, self.origin = path, path.noise, path.origin
        self.t_min, self.t_max = path.t_min, path.t_max

    @eqx.filter_jit
    def coefficients(self, t) -> tuple[Array, Array, Array]:
        return self.path.coefficients(t)

    @eqx.filter_jit
    def rates(self, t) -> tuple[Array, Array, Array]:
        return self.path.rates(t)

    @eqx.filter_jit
    def s_ds(self, t) -> Array:
        return self.path.s_ds(t)

    @eqx.filter_jit
    def log_snr(self, t) -> Array:
        return self.path.log_snr(t)

    @eqx.filter_jit
    def time_of_log_snr(self, level) -> Array:
        return self.path.time_of_log_snr(level)

    @property
    def has_source(self) -> bool:
        return self.path.has_source


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
        return replace(rows, **jax.tree.map(jnp.asarray, columns), **alike)

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
