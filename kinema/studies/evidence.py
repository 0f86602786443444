"""What a study measured: metrics over seeds, tables, pictures, and where it all came from. The verdict is code's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kinema.errors import InputError
from kinema.tables import Spread, Table, float_to_json, number

if TYPE_CHECKING:
    from kinema.report.animation import Animation
    from kinema.report.picture import Picture

FORMAT = 1


@dataclass(frozen=True)
class Metric:
    """One measured number, once for each seed, and what the claim demands of its mean.

    `baseline` holds the same number for the method named by `against`. Without a `target` a metric is only shown.

    >>> Metric("replay error", [0.33, 0.35], target=0.35).met, Metric("speed-up", 1.8, 2.0, ">=", unit="x").met
    (True, False)

    Raises:
        InputError: no values, a direction other than "<=" or ">=", a target that is not finite.
    """

    name: str
    values: Any
    target: float | None = None
    direction: Literal["<=", ">="] = "<="
    baseline: Any = None
    unit: str = ""
    against: str = ""

    def __post_init__(self):
        object.__setattr__(self, "values", _numbers(self.name, self.values))
        if self.baseline is not None:
            object.__setattr__(self, "baseline", _numbers(f"baseline of {self.name}", self.baseline))
        if self.direction not in ("<=", ">="):
            raise InputError(f"metric {self.name!r}: direction must be '<=' or '>=', got {self.direction!r}")
        if self.target is not None:
            object.__setattr__(self, "target", float(self.target))
            if not math.isfinite(self.target):
                raise InputError(f"metric {self.name!r}: target must be finite, got {self.target}")

    @property
    def measured(self) -> Spread:
        """Mean over seeds and standard deviation."""
        return Spread.of(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the mean meets the target; None without a target. A mean that is not finite never does."""
        if self.target is None:
            return None
        mean = self.measured.mean
        return math.isfinite(mean) and (mean <= self.target if self.direction == "<=" else mean >= self.target)

    @property
    def demand(self) -> str:
        """The target in words: "≤ 0.35"; empty without one."""
        return "" if self.target is None else f"{'≤' if self.direction == '<=' else '≥'} {number(self.target)}"

    def shown(self, values: Sequence[float] | None = None) -> str:
        """Mean, spread and unit of the values, or of others in the same unit."""
        return f"{Spread.of(self.values if values is None else values)} {self.unit}".strip()


@dataclass(frozen=True)
class Evidence:
    """The result of a study. A study gives the first five fields; `run` adds the rest.

    Raises:
        InputError: two metrics, pictures or animations of one name.
    """

    metrics: Sequence[Metric] = ()
    figures: Sequence["Picture"] = ()
    tables: Sequence[Table] = ()
    animations: Sequence["Animation"] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    slug: str = ""
    preset: str = ""
    seeds: Sequence[int] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    date: str = ""
    commit: str = ""
    seconds: float = 0.0

    def __post_init__(self):
        for what in ("metrics", "figures", "tables", "animations", "seeds"):
            object.__setattr__(self, what, tuple(getattr(self, what)))
        for what in (self.metrics, (*self.figures, *self.animations)):
            names = [one.name for one in what]
            if len(set(names)) < len(names):
                raise InputError(f"names must differ, got {', '.join(names)}")

    @property
    def missed(self) -> tuple[Metric, ...]:
        """The metrics that do not meet their target."""
        return tuple(metric for metric in self.metrics if metric.met is False)

    @property
    def verdict(self) -> Literal["reproduced", "falls short", "not run"]:
        """ "reproduced" if every target is met, "not run" if there is none to meet, else "falls short"."""
        if all(metric.met is None for metric in self.metrics):
            return "not run"
        return "falls short" if self.missed else "reproduced"

    @property
    def why(self) -> str:
        """The verdict's reason in one sentence."""
        if not self.metrics:
            return "Nothing has been measured yet."
        targets = sum(metric.met is not None for metric in self.metrics)
        if not targets:
            return "No metric has a target."
        if not self.missed:
            return "The target is met." if targets == 1 else f"All {targets} targets are met."
        # the mean alone: rounded to its spread it may look as if it met the target
        parts = [f"{one.name} is {number(one.measured.mean)} {one.unit}".strip() for one in self.missed]
        parts = [f"{part}, target {one.demand}" for part, one in zip(parts, self.missed)]
        return f"{'; '.join(parts)}. {targets - len(self.missed)} of {targets} targets are met."

    def to_json(self) -> dict[str, Any]:
        """Plain data without the pictures' bytes."""
        return {
            **{"format": FORMAT, "slug": self.slug, "verdict": self.verdict, "preset": self.preset},
            "metrics": [_metric_to_json(metric) for metric in self.metrics],
            "tables": [table.to_json() for table in self.tables],
            "settings": _plain(self.settings, "settings"),
            **{"seeds": list(self.seeds), "seconds": round(self.seconds, 1), "device": self.device},
            **{"date": self.date, "commit": self.commit, "versions": dict(self.versions)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evidence":
        """The inverse of `to_json`; the verdict is not read but decided again."""
        same = ("settings", "slug", "preset", "seeds", "seconds", "device", "date", "commit", "versions")
        return cls(
            metrics=[_metric_from_json(metric) for metric in data["metrics"]],
            tables=[Table.from_json(table) for table in data["tables"]],
            **{name: data[name] for name in same},
        )


def _metric_to_json(metric: Metric) -> dict[str, Any]:
    base = metric.baseline
    return {
        "name": metric.name,
        "values": [float_to_json(value) for value in metric.values],
        **{"target": metric.target, "direction": metric.direction, "met": metric.met},
        "baseline": None if base is None else [float_to_json(value) for value in base],
        **{"unit": metric.unit, "against": metric.against},
    }


def _metric_from_json(data: dict[str, Any]) -> Metric:
    return Metric(**{key: value for key, value in data.items() if key != "met"})


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in (values if hasattr(values, "__len__") else [values]))
    except TypeError:
        values = (float(values),)
    if not values:
        raise InputError(f"metric {name!r} has no values; give one for each seed")
    return values


def _plain(value: Any, where: str) -> Any:
    """Settings as JSON keeps them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one, f"{where}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, where) for one in value]
    if isinstance(value, float):
        return float_to_json(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    raise InputError(f"{where} must be numbers, words or lists of them, got {type(value).__name__}")
