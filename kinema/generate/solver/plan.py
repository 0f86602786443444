"""Plans: a solver as the coefficients of a variable-step general linear method.

The loop keeps (x, anchor, H0 .. Hk-1): the current point, the last accepted point of the grid and past transformed
model outputs, newest first. Micro-step j makes one model call and is row j of the plan:

    perturb    x <- r x + n xi
    evaluate   f = the field the plan extrapolates, at (t, x)
    push       H <- (A x + B f + E H0, H0, ..)
    combine    x <- M[0] . (x, anchor, H) + d[0] + c xi',   anchor <- M[1] . (x, anchor, H) + d[1]

All of it is known before sampling starts, in float64 and in NumPy alone, so that the same plan drives the JAX loop and
the PyTorch bridge, and can be drawn, saved and tuned.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid

EXTRAPOLATES = ("data", "noise", "velocity")
COLUMNS = ("t", "after", "A", "B", "E", "M", "d", "r", "n", "c", "snr", "whole")


@dataclass(frozen=True)
class Plan:
    """Coefficients of m micro-steps with a history of k outputs. Made by the functions of `kinema.generate.solver`.

    Shapes: `M (m, 2, 2 + k)`, `d (m, 2)`, all others `(m,)`. `t` is the time of each evaluation, `after` the index of
    the grid point that the row arrives at, `whole` whether x is then a point of the grid. `snr > 0` makes a row a
    Langevin step x + e H0 + sqrt(2 e) xi' with e = 2 (snr |xi'| / |H0|)^2, |xi'| taken as sqrt(dim): the one rule
    here that is not linear. `nfe` counts the evaluations.
    """

    name: str
    extrapolates: str
    grid: Grid
    t: np.ndarray
    after: np.ndarray
    A: np.ndarray
    B: np.ndarray
    E: np.ndarray
    M: np.ndarray
    d: np.ndarray
    r: np.ndarray
    n: np.ndarray
    c: np.ndarray
    snr: np.ndarray
    whole: np.ndarray
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self):
        if self.extrapolates not in EXTRAPOLATES:
            raise InputError(f"extrapolates must be one of {EXTRAPOLATES}, got {self.extrapolates!r}")
        for name in COLUMNS:
            values = np.asarray(getattr(self, name))
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise InputError(
                    f"{self.name} has a coefficient {name} that is not finite in row {row} (t={self.t[row]:g}): the grid"
                    " touches a time where the data or noise coefficient of the path vanishes; move it inside"
                )

    @property
    def nfe(self) -> int:
        return len(self.t)

    @property
    def history(self) -> int:
        return self.M.shape[-1] - 2

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(self.n.any() or self.c.any() or self.snr.any())

    def to_json(self) -> str:
        """The plan as text; `from_json` reads it back exactly."""
        body = {name: np.asarray(getattr(self, name)).tolist() for name in COLUMNS}
        grid = {name: getattr(self.grid, name).tolist() for name in ("times", "a", "b", "s")}
        head = {"name": self.name, "extrapolates": self.extrapolates, "notes": list(self.notes)}
        return json.dumps({**head, "grid": {**grid, "clean": self.grid.clean}, **body})

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read `to_json`.

        Raises:
            InputError: the text is not a plan.
        """
        try:
            content = json.loads(text)
            grid = Grid(**{k: np.asarray(v) if k != "clean" else v for k, v in content.pop("grid").items()})
            arrays = {name: np.asarray(content.pop(name)) for name in COLUMNS}
            return Plan(grid=grid, notes=tuple(content.pop("notes")), **content, **arrays)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f"text is not a plan: {error}") from error


class Draft:
    """Collects rows and closes them into a checked `Plan`."""

    def __init__(self, name: str, grid: Grid, *, extrapolates: str, history: int = 1, notes: Sequence[str] = ()):
        self.name, self.grid, self.extrapolates, self.history, self.notes = name, grid, extrapolates, history, notes
        self.rows: list[dict] = []

    def add(
        self,
        after: int,
        x: float = 0.0,
        H: Sequence[float] = (),
        *,
        t: float | None = None,
        anchor: float = 0.0,
        keep: tuple[float, float, Sequence[float]] | None = None,
        whole: bool = True,
        **scalars: float,
    ):
        """One micro-step that arrives at grid point `after`: x <- x_coefficient x + anchor_coefficient anchor + H . H.

        `keep` gives the coefficients (x, anchor, H) of the new anchor; without it the anchor is the new x. `t`, the time
        of the evaluation, is the grid point before `after` unless given. `scalars` are A, B, E, r, n, c, snr.
        """
        combine = self._row(x, anchor, H)
        row = {"A": 0.0, "B": 1.0, "E": 0.0, "r": 1.0, "n": 0.0, "c": 0.0, "snr": 0.0, "d": (0.0, 0.0)} | scalars
        row |= {"after": after, "whole": whole, "t": self.grid.times[after - 1] if t is None else t}
        self.rows.append(row | {"M": (combine, combine if keep is None else self._row(*keep))})

    def plan(self) -> Plan:
        columns = {name: np.array([row[name] for row in self.rows]) for name in COLUMNS}
        return Plan(self.name, self.extrapolates, self.grid, **columns, notes=tuple(self.notes))

    def _row(self, x: float, anchor: float, H: Sequence[float]) -> list[float]:
        return [x, anchor, *H, *(0.0,) * (self.history - len(H))]


def check_order(order: int, highest: int):
    """Refuse an order that a family does not have.

    Raises:
        InputError: order not a whole number in 1 .. highest.
    """
    if not (isinstance(order, int | np.integer) and 1 <= order <= highest):
        raise InputError(f"order must be a whole number from 1 to {highest}, got {order!r}")


def orders(order: int, steps: int, *, lower_final: bool = False) -> list[int]:
    """The order of each step: it grows from 1 as history fills and, if asked, falls to 1 at the end."""
    return [min(order, i + 1, steps - i if lower_final else order) for i in range(steps)]


PLAN_META = ("name", "extrapolates", "grid", "notes")
PLAN_DATA = tuple(f.name for f in fields(Plan) if f.name not in PLAN_META)
