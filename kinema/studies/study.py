"""Studies: one runnable claim for each method, found by its slug.

    @study("ghvb", "Wizadwongsa et al., 2024, arXiv 2307.00910", "Damped history removes artefacts at few steps.")
    def run(preset, seeds):
        ...
        return Evidence([Metric("error at 12 evaluations", errors, target=0.02)], figures=[...])

Such a file in this folder is a study; nothing else has to be told of it. Its slug, paper and claim are read from the
source, so that a list of all studies imports none of them, nor JAX.
"""

import ast
import importlib
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kinema.errors import InputError, choose
from kinema.studies import provenance
from kinema.studies.evidence import Evidence

PRESETS = ("smoke", "quick", "full")
"""How much a study does: seconds, minutes on two cores, or one GPU."""
Preset = Literal["smoke", "quick", "full"]


@dataclass(frozen=True)
class About:
    """What can be said of a study without running it. `module` is where its function stands."""

    slug: str
    paper: str
    claim: str
    title: str
    stage: str
    module: str


@dataclass(frozen=True)
class Study:
    """A registered study: what it is about, its function, and how many seeds it takes by default."""

    about: About
    function: Callable[..., Evidence]
    seeds: int

    def run(self, preset: Preset = "quick", seeds: Iterable[int] | None = None) -> Evidence:
        """Measure. A function of `seeds` is called once, one of `seed` for each and the results are put together.

        Raises:
            InputError: another preset, no seeds, or evidence without a metric that has a target.
        """
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        default = 1 if preset == "smoke" else self.seeds
        chosen = tuple(range(default)) if seeds is None else tuple(int(seed) for seed in seeds)
        if not chosen:
            raise InputError("seeds is empty; give at least one")
        start = time.perf_counter()
        if "seeds" in inspect.signature(self.function).parameters:
            evidence = self.function(preset=preset, seeds=chosen)
        else:
            evidence = _together([self.function(preset=preset, seed=seed) for seed in chosen])
        if all(metric.target is None for metric in evidence.metrics):
            raise InputError(f"study {self.about.slug!r} gave no metric with a target, so its claim cannot be judged")
        return replace(
            evidence,
            slug=self.about.slug,
            preset=preset,
            seeds=chosen,
            seconds=time.perf_counter() - start,
            **provenance.collect(),
        )


_STUDIES: dict[str, Study] = {}


def study(
    slug: str, paper: str, claim: str, *, title: str = "", stage: str = "", seeds: int = 3
) -> Callable[[Callable[..., Evidence]], Study]:
    """Register a function of `(preset, seeds)` or `(preset, seed)` that returns `Evidence`.

    `slug`, `paper`, `claim`, `title` and `stage` are written as plain strings, since they are read from the source. The
    title is by default made of the slug; `seeds` is how many the presets quick and full take (0, 1, ...).

    Raises:
        InputError: a slug that another function has, or a function with other parameters.
    """

    def register(function: Callable[..., Evidence]) -> Study:
        known = set(inspect.signature(function).parameters)
        if known not in ({"preset", "seed"}, {"preset", "seeds"}):
            raise InputError(f"study {slug!r} must take (preset, seeds) or (preset, seed), got {sorted(known)}")
        module = function.__module__
        if slug in _STUDIES and _STUDIES[slug].about.module != module:
            raise InputError(f"study {slug!r} is registered already, by {_STUDIES[slug].about.module}")
        about = About(slug, paper, claim, title or _title(slug), stage, module)
        _STUDIES[slug] = Study(about, function, seeds)
        return _STUDIES[slug]

    return register


def catalog() -> dict[str, About]:
    """All studies by slug, those of this package and those registered by others, without importing them."""
    found = {about.slug: about for file in sorted(Path(__file__).parent.glob("*.py")) for about in _read(file)}
    return dict(sorted((found | {slug: one.about for slug, one in _STUDIES.items()}).items()))


def get(slug: str) -> Study:
    """A study, its module imported if need be.

    Raises:
        InputError: no study has this slug; the nearest ones are suggested.
    """
    if slug not in _STUDIES:
        importlib.import_module(choose(catalog(), slug, "study").module)
    return choose(_STUDIES, slug, "study")


def run(slug: str, preset: Preset = "quick", seeds: Iterable[int] | None = None) -> Evidence:
    """Run a study; `save_evidence` keeps what it returns.

    Raises:
        InputError: unknown slug or preset, no seeds.
    """
    return get(slug).run(preset, seeds)


def _together(parts: Sequence[Evidence]) -> Evidence:
    """One evidence from one for each seed: values side by side; pictures, tables and settings of the first."""
    first = parts[0]
    metrics = []
    for index, metric in enumerate(first.metrics):
        same = [part.metrics[index] if index < len(part.metrics) else metric for part in parts]
        if any(one.name != metric.name for one in same) or any(len(p.metrics) != len(first.metrics) for p in parts):
            raise InputError("a study must give the same metrics in the same order for every seed")
        values = [value for one in same for value in one.values]
        baseline = None if metric.baseline is None else [value for one in same for value in one.baseline or ()]
        metrics.append(replace(metric, values=values, baseline=baseline))
    return replace(first, metrics=metrics)


def _read(file: Path) -> list[About]:
    """The studies of a source file, from the arguments of its `@study(...)`."""
    source = file.read_text(encoding="utf-8")
    if "\n@study(" not in source:
        return []
    found = []
    for node in ast.parse(source).body:
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "study":
                found.append(_about(call, f"{__package__}.{file.stem}"))
    return found


def _about(call: ast.Call, module: str) -> About:
    try:
        words = dict(zip(("slug", "paper", "claim"), map(ast.literal_eval, call.args)))
        words |= {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg and one.arg != "seeds"}
        title = words.get("title") or _title(words["slug"])
        return About(words["slug"], words["paper"], words["claim"], title, words.get("stage", ""), module)
    except (ValueError, KeyError) as error:
        raise InputError(f"{module}: slug, paper and claim of @study must be plain strings") from error


def _title(slug: str) -> str:
    return slug.replace("-", " ").capitalize()
