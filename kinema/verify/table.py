"""Law errors of several motions side by side: true, generated, steered.

A row is one set of motions, or several sets from several training seeds. Within a row, one number is the mean over
trajectories; its ± is the standard deviation over seeds where there are several, else the standard error of that mean.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinema.errors import InputError
from kinema.tables import Spread, Table


def law_table(
    rows: Mapping[str, Any], *, columns: Sequence[str] = (), title: str = "Law errors", note: str = ""
) -> Table:
    """A `Table` (terminal, Markdown, HTML, JSON) of law errors.

    `rows` maps a name to law errors, or to a list of them, one for each seed. Law errors are a `LawErrors` or a mapping
    {law: numbers of all trajectories, or one number}; add your own columns with a mapping. `columns` chooses laws and
    their order; by default all that occur, in order of appearance. A value that is NaN (no interval on which the law
    can be judged) is left out of the mean, and the note says of how many.

    >>> rows = {"true": {"energy": 0.0, "hits": [3, 4]}, "generated": [{"energy": 0.28}, {"energy": 0.30}]}
    >>> print(law_table(rows).markdown().splitlines()[3])
    | generated | 0.290 ± 0.014 | – |

    Raises:
        InputError: no rows, a row without a list entry, or a column that no row has.
    """
    if not rows:
        raise InputError("rows is empty; give at least one name with its law errors")
    sets = {name: [_laws(one) for one in _listed(name, row)] for name, row in rows.items()}
    found = list(dict.fromkeys(law for row in sets.values() for laws in row for law in laws))
    for law in columns:
        if law not in found:
            raise InputError(f"no row has the column {law!r}; there are {', '.join(found)}")
    chosen = list(columns) or found
    left_out = {law: sum(_left_out(laws.get(law)) for row in sets.values() for laws in row) for law in chosen}
    remarks = [f"{law}: {count} trajectories without a value." for law, count in left_out.items() if count]
    body = [(name, *(_cell([laws.get(law) for laws in row]) for law in chosen)) for name, row in sets.items()]
    return Table(title, ("motion", *chosen), body, " ".join([*([note] if note else []), _meaning(sets), *remarks]))


def _listed(name: str, row) -> list:
    row = list(row) if isinstance(row, list | tuple) and not hasattr(row, "_fields") else [row]
    if not row:
        raise InputError(f"row {name!r} is an empty list; give law errors for at least one seed")
    return row


def _laws(errors) -> dict[str, np.ndarray]:
    """{law: float64 array}, from a mapping, a dataclass (Equinox module) or a named tuple."""
    if isinstance(errors, Mapping):
        named = dict(errors)
    elif dataclasses.is_dataclass(errors):
        named = {field.name: getattr(errors, field.name) for field in dataclasses.fields(errors)}
    elif hasattr(errors, "_asdict"):
        named = errors._asdict()
    else:
        raise InputError(f"law errors must be a LawErrors or a mapping of law to numbers, got {type(errors).__name__}")
    return {name: np.asarray(value, np.float64) for name, value in named.items() if value is not None}


def _cell(seeds: list[np.ndarray | None]) -> Spread | None:
    given = [values[~np.isnan(values)] for values in seeds if values is not None]
    given = [values for values in given if values.size]
    if len(given) != 1:
        return Spread.of(values.mean() for values in given) if given else None
    error = given[0].std(ddof=1) / math.sqrt(given[0].size) if given[0].size > 1 else None
    return Spread(float(given[0].mean()), None if error is None else float(error))


def _left_out(values: np.ndarray | None) -> int:
    return 0 if values is None or values.ndim == 0 else int(np.isnan(values).sum())


def _meaning(sets) -> str:
    seeds = sorted({len(row) for row in sets.values()})
    if seeds == [1]:
        return "± is the standard error over trajectories."
    over = f"± is the standard deviation over {' or '.join(str(s) for s in seeds if s > 1)} seeds"
    return over + (", in rows with one seed the standard error over trajectories." if 1 in seeds else ".")
