"""What `verify` finds out about samples: law errors where a world is known, distances where there is a comparison."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.cli.sampling import world_of
from kinema.cli.shell import tell
from kinema.errors import InputError
from kinema.motion import Trajectory
from kinema.motion.readers import Dataset
from kinema.simulate import worlds
from kinema.simulate.world import World
from kinema.tables import Table, float_to_json
from kinema.verify.distances import classifier_two_sample, energy_distance, mmd, sliced_wasserstein
from kinema.verify.laws import LawErrors, laws
from kinema.verify.table import law_table

AT_MOST = 4096  # samples of a side in a distance, which needs all their pairs


@dataclass(frozen=True)
class Findings:
    """Samples under their names, the world they were judged by, and the numbers."""

    samples: dict[str, Dataset]
    world: World | None
    errors: dict[str, LawErrors] = field(default_factory=dict)
    distances: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def tables(self) -> list[Table]:
        """Law errors and distances, as far as there are any."""
        tables = []
        if self.errors:
            tables.append(_turned(law_table({name: errors.columns for name, errors in self.errors.items()})))
        if self.distances:
            one, other = self.samples
            rows = [(name, value, floor) for name, (value, floor) in self.distances.items()]
            note = f"Beside each: the same between two halves of {other}. Samples are scaled to the spread of {other}."
            tables.append(Table(f"Distance of {one} to {other}", ("distance", "value", "equal laws"), rows, note))
        return tables

    def to_json(self) -> dict[str, Any]:
        """All numbers, for a script."""
        rows = {}
        for name, errors in self.errors.items():
            means, spreads = errors.means(), errors.spreads()
            rows[name] = {law: {"mean": float_to_json(means[law]), "std": float_to_json(spreads[law])} for law in means}
        pairs = {n: {"value": float_to_json(v), "equal_laws": float_to_json(f)} for n, (v, f) in self.distances.items()}
        world = None if self.world is None else self.world.name
        sizes = {name: len(data) for name, data in self.samples.items()}
        return {"samples": sizes, "world": world, "laws": rows, "distances": pairs}


def find(
    data: Dataset, name: str, held: Dataset | None, *, world: str | None, chosen: dict[str, Any], seed: int
) -> Findings:
    """Judge `data`, and `held` beside it.

    Raises:
        InputError: a world was named for samples without times; nothing to verify against; other shapes in `held`.
    """
    samples = {name: data}
    if held is not None:
        samples["held-out" if name != "held-out" else "compared"] = held
    law = _law(data, world, chosen)
    if law is None and held is None:
        raise InputError("nothing to verify by: give --world, or --against other samples")
    errors = {} if law is None else {title: laws(one.trajectory(), law) for title, one in samples.items()}
    return Findings(samples, law, errors, {} if held is None else distances(data, held, key=jr.key(seed)))


def distances(data: Dataset, held: Dataset, *, key) -> dict[str, tuple[float, float]]:
    """Each distance between `data` and `held`, and between two halves of `held`."""
    order = np.random.default_rng(0).permutation(len(held))
    half = len(held) // 2
    x, y = _scaled(data, held), _scaled(held, held)
    first, second = ({name: rows[part] for name, rows in y.items()} for part in (order[:half], order[half:]))
    root = sum(rows[0].size for rows in y.values()) ** 0.5
    key_slices, key_test = jr.split(key)
    measures = {
        "energy": lambda a, b: energy_distance(a, b) / root,
        "sliced Wasserstein": lambda a, b: sliced_wasserstein(a, b, key_slices),
        "MMD": mmd,
        "classifier": lambda a, b: classifier_two_sample(a, b, key_test).accuracy,
    }
    return {title: (float(measure(x, y)), float(measure(first, second))) for title, measure in measures.items()}


def _turned(table: Table) -> Table:
    """Rows as columns: many laws and few motions fit a terminal better that way."""
    names, *rows = zip(table.columns, *table.rows)
    return Table(table.title, ("law", *names[1:]), rows, table.note)


def motion_of(data: Dataset) -> Trajectory | None:
    """The samples as trajectories, if they have times."""
    return None if data.ts is None else data.trajectory()


def _scaled(data: Dataset, like: Dataset) -> dict[str, jax.Array]:
    """Arrays by name, each in units of the spread of `like`, at most `AT_MOST` rows, evenly chosen."""
    arrays, others = (d.arrays if isinstance(d.arrays, dict) else {"x": d.arrays} for d in (data, like))
    rows = np.linspace(0, len(data) - 1, min(len(data), AT_MOST)).astype(int)
    spread = {name: float(np.std(array, dtype=np.float64)) or 1.0 for name, array in others.items()}
    return {name: jnp.asarray(array[rows], jnp.float32) / spread.get(name, 1.0) for name, array in arrays.items()}


def _law(data: Dataset, name: str | None, chosen: dict[str, Any]) -> World | None:
    known = data.meta.get("world")
    if name is None and known is not None and known not in worlds():
        tell(f"note: the world {known!r} is not known here, so its law is not checked", style="yellow")
        return None
    world = world_of(dict(data.meta), name, chosen)
    if world is not None and data.ts is None:
        raise InputError(f"the samples have no times, so the law of {world.name} cannot be checked on them")
    return world
