"""Plans: a solver as the coefficients of a variable-step general linear method.

The loop keeps (x, anchor, H0 .. Hk-1): the current point, the last accepted point of the grid and past transformed
model outputs, newest first. Micro-step j makes one model call and is row j of the plan:

    perturb    x <- r x + n xi
    evaluate   f = the field the plan extrapolates, at (t, x), and the score
    push       H <- (A x + B f + S score + E H0, H0, ..)
    combine    x <- M[0] . (x, anchor, H) + d[0] + c xi',   anchor <- M[1] . (x, anchor, H) + d[1]

All of it is known before sampling starts, in float64 and in NumPy alone, so that the same plan drives the JAX loop and
the PyTorch bridge, and can be drawn, saved and tuned.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid

EXTRAPOLATES = ("data", "noise", "velocity")
COLUMNS = ("t", "after", "A", "B", "S", "E", "M", "d", "r", "n", "c", "snr", "whole")
Vector = Sequence | np.ndarray
SHAPED = ("A", "B", "M", "d")  # may carry the shape of a sample on top


@dataclass(frozen=True)
class Plan:
    """Coefficients of m micro-steps with a history of k outputs. Made by the functions of `kinema.generate.solver`.

    Shapes: `M (m, 2, 2 + k)`, `d (m, 2)`, all others `(m,)`; A, B, M and d may go on with the shape of one sample. `t`
    is the time of each evaluation, `after` the index of the grid point that the row arrives at, `whole` whether x is
    then a point of the grid. `snr > 0` makes a row a Langevin step x + e H0 + sqrt(2 e) xi' with e = 2 (snr |xi'| /
    |H0|)^2, |xi'| taken as sqrt(dim): the one rule here that is not linear. `nfe` counts the evaluations.

    `fallback[q]` holds the rows for a sample whose history was emptied q micro-steps before, so that one whose point
    has jumped goes on at a lower order; a longer history takes the plan's own rows.

    Raises:
        InputError: columns that do not fit each other or the grid; a coefficient that is not finite.
    """

    name: str
    extrapolates: str
    grid: Grid
    t: np.ndarray
    after: np.ndarray
    A: np.ndarray
    B: np.ndarray
    S: np.ndarray
    E: np.ndarray
    M: np.ndarray
    d: np.ndarray
    r: np.ndarray
    n: np.ndarray
    c: np.ndarray
    snr: np.ndarray
    whole: np.ndarray
    notes: tuple[str, ...] = ()
    fallback: Sequence["Plan"] = ()

    def __post_init__(self):
        if self.extrapolates not in EXTRAPOLATES:
            raise InputError(f"extrapolates must be one of {EXTRAPOLATES}, got {self.extrapolates!r}")
        for name in COLUMNS:
            values = np.asarray(getattr(self, name), {"after": int, "whole": bool}.get(name, float))
            object.__setattr__(self, name, values)
            if not self._fits(name, values.shape):
                raise InputError(f"{self.name}: column {name} has shape {values.shape} in a plan of {len(self.t)} rows")
            if not np.isfinite(values).all():
                row, *entry = np.argwhere(~np.isfinite(values))[0]
                raise InputError(
                    f"{self.name}: coefficient {name}{[int(i) for i in entry] or ''} is not finite in row {row}"
                    f" (t={self.t[row]:g}): the grid touches a time where the data or noise coefficient of the path"
                    " vanishes; move it inside"
                )
        if self.after.min() < 0 or self.after.max() > self.grid.steps:
            raise InputError(f"{self.name}: after must be in 0 .. {self.grid.steps}, got {self.after}")
        given = () if isinstance(self.fallback, OnDemand) else self.fallback
        if any(shallow.M.shape != self.M.shape for shallow in given):
            raise InputError(f"{self.name}: each fallback must have the rows and history of the plan")

    @property
    def nfe(self) -> int:
        return len(self.t)

    @property
    def history(self) -> int:
        return self.M.shape[2] - 2

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(self.n.any() or self.c.any() or self.snr.any())

    @property
    def scored(self) -> bool:
        """Whether noise is met by the score itself, so that the law of the path's own noise does not matter."""
        return bool((self.S[(self.c != 0) | (self.snr > 0)] != 0).all() and not self.n.any())

    def to_json(self) -> str:
        """The plan as text; `from_json` reads it back exactly."""
        grid = {name: getattr(self.grid, name).tolist() for name in ("times", "a", "b", "s")}
        head = {"name": self.name, "extrapolates": self.extrapolates, "notes": list(self.notes)}
        shallow = [plan._body() for plan in self.fallback]
        return json.dumps(head | {"grid": grid | {"clean": self.grid.clean}, "fallback": shallow} | self._body())

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read `to_json`.

        Raises:
            InputError: the text is not a plan.
        """
        try:
            content = json.loads(text)
            points = content.pop("grid").items()
            grid: dict[str, Any] = {name: v if name == "clean" else np.asarray(v) for name, v in points}
            head: dict[str, Any] = {name: content.pop(name) for name in ("name", "extrapolates")}
            head |= {"grid": Grid(**grid), "notes": tuple(content.pop("notes"))}

            def read(body: Mapping[str, list]) -> Plan:
                columns: dict[str, Any] = {name: np.asarray(values) for name, values in body.items()}
                return Plan(**head, **columns)

            shallow = tuple(read(body) for body in content.pop("fallback"))
            return replace(read(content), fallback=shallow)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"text is not a plan: {error}") from error

    def _body(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in COLUMNS}

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        head = {"M": (len(self.t), 2), "d": (len(self.t), 2)}.get(name, (len(self.t),))
        own = len(head) + (name == "M")
        return len(shape) >= own and shape[: len(head)] == head and (len(shape) == own or name in SHAPED)


class Draft:
    """Collects rows and closes them into a checked `Plan`."""

    def __init__(self, name: str, grid: Grid, *, extrapolates: str, history: int = 1, notes: Sequence[str] = ()):
        self.name, self.grid, self.extrapolates, self.history, self.notes = name, grid, extrapolates, history, notes
        self.rows: list[dict] = []

    def add(
        self,
        after: int,
        x=0.0,
        H: Vector = (),
        *,
        t: float | None = None,
        anchor=0.0,
        keep: tuple[Any, Any, Vector] | None = None,
        whole: bool = True,
        **scalars,
    ):
        """One micro-step that arrives at grid point `after`: x <- x_coefficient x + anchor_coefficient anchor + H . H.

        `keep` gives the coefficients (x, anchor, H) of the new anchor (`HERE` for the x of this evaluation); without it
        the anchor is the new x. `t`, the time of the evaluation, is the grid point before `after` unless given.
        `scalars` are A, B, S, E, d, r, n, c, snr. Coefficients may be numbers or have the shape of one sample.
        """
        combine = self._row(x, anchor, H)
        row = {
            "A": 0.0,
            "B": 1.0,
            "S": 0.0,
            "E": 0.0,
            "r": 1.0,
            "n": 0.0,
            "c": 0.0,
            "snr": 0.0,
            "d": (0.0, 0.0),
        } | scalars
        row |= {"after": after, "whole": whole, "t": self.grid.times[after - 1] if t is None else t}
        self.rows.append(row | {"M": combine + (combine if keep is None else self._row(*keep))})

    def plan(self) -> Plan:
        columns: dict[str, Any] = {
            name: np.array([row[name] for row in self.rows]) for name in COLUMNS if name not in SHAPED
        }
        for name in ("A", "B"):
            columns[name] = _stack([row[name] for row in self.rows])
        for name in ("M", "d"):
            flat = _stack([entry for row in self.rows for entry in row[name]])
            columns[name] = flat.reshape(len(self.rows), 2, -1, *flat.shape[1:])
        columns["d"] = columns["d"][:, :, 0]
        return Plan(self.name, self.extrapolates, self.grid, **columns, notes=tuple(self.notes))

    def _row(self, x, anchor, H: Vector) -> list:
        return [x, anchor, *H, *(0.0,) * (self.history - len(H))]


class OnDemand(Sequence):
    """`build(0)` .. `build(length - 1)`, each built when it is asked for: few plans are ever steered by their moves."""

    def __init__(self, build: Callable[[int], Plan], length: int):
        self._build, self._length, self._built = build, length, {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i):
        if isinstance(i, slice):
            return tuple(self[j] for j in range(*i.indices(self._length)))
        if not -self._length <= i < self._length:
            raise IndexError(i)
        i %= self._length
        if i not in self._built:
            self._built[i] = self._build(i)
        return self._built[i]


HERE = (1.0, 0.0, ())


def assemble(
    name: str,
    grid: Grid,
    row: Callable[[int, int], Mapping[str, Any]],
    rows: int,
    *,
    extrapolates: str,
    history: int,
    depth: int,
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of `row(j, age)` -> arguments of `Draft.add`, with its fallback.

    `age` counts the micro-steps since the history was empty: j, but q in `fallback[q]`, q < `depth`, as soon as j
    reaches it.
    """

    def build(longest: int) -> Plan:
        draft = Draft(name, grid, extrapolates=extrapolates, history=history, notes=notes)
        for j in range(rows):
            draft.add(**row(j, min(j, longest)))
        return draft.plan()

    return replace(build(rows), fallback=OnDemand(build, depth))


def check_order(order: int, highest: int):
    """Refuse an order that a family does not have.

    Raises:
        InputError: order not a whole number in 1 .. highest.
    """
    if not (isinstance(order, int | np.integer) and 1 <= order <= highest):
        raise InputError(f"order must be a whole number from 1 to {highest}, got {order!r}")


def _stack(values: Sequence) -> np.ndarray:
    """Numbers and arrays of one shape, stacked."""
    return np.stack(np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values)))
