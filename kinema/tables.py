"""Tables of numbers with spread: described once, drawn for the terminal, for Markdown and for HTML.

Like `kinema.errors` this needs neither JAX nor any stage: every stage may return a table, and listings stay fast.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinema.errors import InputError

if TYPE_CHECKING:
    import rich.table

DASH = "–"
LONG = 24  # characters; longer words may be broken into lines


@dataclass(frozen=True)
class Spread:
    """A mean and how far single measurements lie from it; `spread` is None where there was only one.

    >>> str(Spread(0.34121, 0.0123)), str(Spread(2.0e-4, 3.1e-5)), str(Spread(0.0, 0.0))
    ('0.341 ± 0.012', '(2.0 ± 0.3)e-4', '0')
    """

    mean: float
    spread: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Mean and sample standard deviation (divisor n - 1) of `values`. An empty list has mean NaN."""
        values = [float(value) for value in values]
        if not values:
            return cls(math.nan)
        mean = math.fsum(values) / len(values)
        if len(values) == 1 or not math.isfinite(mean):
            return cls(mean)
        if min(values) == max(values):
            return cls(values[0], 0.0)  # not the rounding of a sum
        return cls(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)))

    def __str__(self) -> str:
        if self.spread is None or not self.spread > 0 or not math.isfinite(self.spread + self.mean):
            return number(self.mean)
        size = max(abs(self.mean), self.spread)
        if not 1e-3 <= size < 1e6:
            power = math.floor(math.log10(size))
            return f"({self.mean / 10**power:.1f} ± {self.spread / 10**power:.1f})e{power}"
        # one digit of the spread, two where the first is a 1; but two to four digits of the larger number
        power = math.floor(math.log10(self.spread))
        least = 1 - math.floor(math.log10(size))
        places = max(0, least, min((self.spread < 1.95 * 10**power) - power, least + 2))
        if self.spread < 0.5 / 10**places:
            return f"{number(self.mean)} ± {number(self.spread)}"
        return f"{self.mean:.{places}f} ± {self.spread:.{places}f}"


Cell = str | int | float | bool | None | Spread


def number(value: float) -> str:
    """Three significant digits, without an exponent where people would not write one.

    >>> [number(x) for x in (0, 0.0123456, 0.35, 8e-7, 1234567.0, 96, float("nan"))]
    ['0', '0.0123', '0.35', '8e-7', '1.23e6', '96', 'nan']
    """
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 6:
        return _trim(f"{value:.{max(2 - power, 0)}f}")
    return f"{_trim(f'{value / 10**power:.2f}')}e{power}"


def text(cell: Cell) -> str:
    """A cell as people read it."""
    if cell is None:
        return DASH
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int | float):
        return number(cell)
    return str(cell)


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the first column names the row.

    >>> rows = [("true", 0.0), ("generated", Spread(0.341, 0.012))]
    >>> print(Table("Law errors", ("motion", "replay"), rows).markdown())
    | motion | replay |
    | :-- | --: |
    | true | 0 |
    | generated | 0.341 ± 0.012 |

    Raises:
        InputError: no columns, or a row of another length.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self):
        object.__setattr__(self, "columns", tuple(map(str, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(_cell, row)) for row in self.rows))
        if not self.columns:
            raise InputError(f"table {self.title!r} has no columns")
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(
                    f"table {self.title!r}: row {index} has {len(row)} cells, there are {len(self.columns)} columns"
                )

    def rich(self) -> "rich.table.Table":
        """For a Rich console. Cells are plain text: square brackets in them are not markup."""
        import rich.box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(self.title, style="bold") if self.title else None,
            caption=Text(self.note, style="dim") if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=rich.box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for index, name in enumerate(self.columns):
            table.add_column(Text(name), justify="right" if self.numeric(index) else "left", no_wrap=index == 0)
        for row in self.rows:
            table.add_row(*(Text(text(cell)) for cell in row))
        return table

    def markdown(self) -> str:
        """A GitHub table without its title; the note follows as a paragraph."""
        rules = ["--:" if self.numeric(index) else ":--" for index in range(len(self.columns))]
        rows = [self.columns, None, *self.rows]
        lines = ["| " + " | ".join(rules if row is None else [_plain(text(c)) for c in row]) + " |" for row in rows]
        return "\n".join(lines) + (f"\n\n{_plain(self.note)}" if self.note else "")

    def html(self) -> str:
        """A `<table>` with its title as caption, all escaped. Class `number` is set flush right, `long` may wrap."""
        numeric = [self.numeric(index) for index in range(len(self.columns))]

        def cell(tag: str, scope: str, words: str, index: int) -> str:
            name = "number" if numeric[index] else "long" if len(words) > LONG else ""
            marks = (f' scope="{scope}"' if scope else "") + (f' class="{name}"' if name else "")
            return f"<{tag}{marks}>{html.escape(words)}</{tag}>"

        head = "".join(cell("th", "col", name, index) for index, name in enumerate(self.columns))
        rows = [
            cell("th", "row", text(row[0]), 0) + "".join(cell("td", "", text(one), i) for i, one in enumerate(row) if i)
            for row in self.rows
        ]
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_json(self) -> dict:
        """Plain data for `json.dumps(..., allow_nan=False)`."""
        rows = [[_cell_to_json(cell) for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "note": self.note}

    @classmethod
    def from_json(cls, data: dict) -> "Table":
        """The inverse of `to_json`."""
        rows = [[_cell_from_json(cell) for cell in row] for row in data["rows"]]
        return cls(data["title"], data["columns"], rows, data.get("note", ""))

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers only, so that it is set flush right."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(
            isinstance(cell, int | float | Spread) and not isinstance(cell, bool) for cell in cells
        )


def float_to_json(value: float) -> float | str:
    """JSON has no NaN or infinity: those become the words that `float` reads back."""
    return float(value) if math.isfinite(value) else str(float(value))


def _cell(value) -> Cell:
    """NumPy and JAX scalars become Python numbers."""
    return value.item() if hasattr(value, "item") else value


def _trim(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _cell_to_json(cell: Cell):
    if isinstance(cell, Spread):
        spread = None if cell.spread is None else float_to_json(cell.spread)
        return {"mean": float_to_json(cell.mean), "spread": spread}
    if isinstance(cell, float) and not math.isfinite(cell):
        return {"mean": float_to_json(cell), "spread": None}
    return cell


def _cell_from_json(cell) -> Cell:
    if isinstance(cell, dict):
        return Spread(float(cell["mean"]), None if cell["spread"] is None else float(cell["spread"]))
    return cell


def _plain(value: str) -> str:
    """Text that Markdown shows as it is, inside one table cell."""
    value = " ".join(value.split())
    for mark in ("\\", "|", "`", "*", "_", "[", "]"):
        value = value.replace(mark, "\\" + mark)
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
