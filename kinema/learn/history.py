"""What a run recorded: loss and metrics of every step, and what probes saw."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kinema.errors import InputError, StoreCorrupt
from kinema.motion import trees
from kinema.motion.weights import atomic_file


@dataclasses.dataclass(frozen=True)
class ProbeRecord:
    """What one probe saw: `steps` (k,), and `values` by leaf name, each (k, ...)."""

    steps: np.ndarray
    values: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class History:
    """`metrics`: by name, each (steps, ...), "loss" among them. `probes`: by name."""

    metrics: dict[str, np.ndarray]
    probes: dict[str, ProbeRecord] = dataclasses.field(default_factory=dict)

    @property
    def loss(self) -> np.ndarray:
        """(steps,)"""
        return self.metrics["loss"]

    def __len__(self) -> int:
        return len(self.loss)

    def save(self, path: str | os.PathLike) -> None:
        """Write as JSON, atomically. A value that is not finite becomes null.

        Raises:
            OSError: the file cannot be written.
        """
        record = {
            "metrics": {name: _jsonable(values) for name, values in self.metrics.items()},
            "probes": {
                name: {
                    "steps": probe.steps.tolist(),
                    "values": {leaf: _jsonable(values) for leaf, values in probe.values.items()},
                }
                for name, probe in self.probes.items()
            },
        }
        with atomic_file(path) as file:
            file.write(json.dumps(record, allow_nan=False).encode())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "History":
        """Read what `save` wrote; null is read as NaN.

        Raises:
            InputError: no such file.
            StoreCorrupt: not a history.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no history at {path}")
        try:
            record = json.loads(path.read_text())
            probes = {
                name: ProbeRecord(
                    np.asarray(probe["steps"], np.int64),
                    {leaf: _array(values) for leaf, values in probe["values"].items()},
                )
                for name, probe in record["probes"].items()
            }
            return cls({name: _array(values) for name, values in record["metrics"].items()}, probes)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreCorrupt(f"{path} is not a history: {error}") from error


class Recorder:
    """A history that grows, and goes to and from the arrays of a checkpoint."""

    def __init__(self):
        self.metrics: dict[str, list[np.ndarray]] = {}
        self.probes: dict[str, tuple[list[int], dict[str, list[np.ndarray]]]] = {}

    def extend(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Add a chunk: arrays with a leading axis of steps."""
        for name, values in metrics.items():
            self.metrics.setdefault(name, []).append(values)

    def probe(self, name: str, step: int, values: Any) -> None:
        """Add what a probe saw; `values` any PyTree of arrays and numbers, of the same structure every time."""
        steps, columns = self.probes.setdefault(name, ([], {}))
        steps.append(step)
        for leaf, value in trees.named_leaves(values):
            columns.setdefault(leaf, []).append(np.asarray(value))

    def history(self) -> History:
        """All so far; names in order, so that a resumed run writes the same bytes."""
        metrics = {name: np.concatenate(parts) for name, parts in sorted(self.metrics.items())}
        self.metrics = {name: [values] for name, values in metrics.items()}
        return History(metrics or {"loss": np.zeros(0, np.float32)}, self.records())

    def records(self) -> dict[str, ProbeRecord]:
        """What probes saw so far."""
        return {
            name: ProbeRecord(np.asarray(steps), {leaf: np.stack(column) for leaf, column in sorted(columns.items())})
            for name, (steps, columns) in sorted(self.probes.items())
        }

    def arrays(self) -> dict[str, Any]:
        """A tree of arrays for a checkpoint; `restore` takes its leaves by name."""
        history = self.history()
        return {
            "metrics": history.metrics,
            "probes": {name: {"steps": p.steps, "values": p.values} for name, p in history.probes.items()},
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from a checkpoint."""
        for name, values in arrays.items():
            kind, _, rest = name.partition("/")
            if kind == "metrics":
                self.metrics[rest] = [values]
            elif rest.count("/") == 1:  # NAME/steps; the values are NAME/values/LEAF
                probe = rest.removesuffix("/steps")
                prefix = f"probes/{probe}/values/"
                columns = {n.removeprefix(prefix): list(v) for n, v in arrays.items() if n.startswith(prefix)}
                self.probes[probe] = (values.tolist(), columns)


def _jsonable(values: np.ndarray) -> list:
    """Nested lists of the shortest decimals that read back as the same numbers of the same width."""
    if values.dtype.kind in "biu":
        return values.tolist()
    flat = np.empty(values.size, object)
    flat[:] = [float(str(v)) if np.isfinite(v) else None for v in values.ravel()]
    return flat.reshape(values.shape).tolist()


def _array(values: list) -> np.ndarray:
    if any(value is None for value in np.asarray(values, object).ravel()):
        return np.asarray(values, float)
    return np.asarray(values)
