"""What `generate` and `steer` share: a trained run made ready to sample, and samples made into motion."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

import kinema
from kinema.cli.learn import REQUEST
from kinema.cli.shell import bar, tell
from kinema.errors import InputError
from kinema.generate.generator import AbstractGenerator
from kinema.generate.guidance import Guided
from kinema.generate.recommendation import recommend
from kinema.generate.run import Run, load_run
from kinema.generate.solver import Plan, make
from kinema.generate.solver.model_statistics import FILE as STATISTICS
from kinema.motion import Trajectory
from kinema.motion.readers import Dataset, read
from kinema.simulate.world import World
from kinema.simulate.world import make as make_world

PILOT = 1024  # starts on which --solver recommend tries solvers
AT_ONCE = 512  # samples in one call; seeds count in these, so it is part of the format of a seed


@dataclass(frozen=True)
class Job:
    """A generator, its plan, and the labels of the `n` samples asked for."""

    run: Run
    generator: AbstractGenerator
    plan: Plan
    n: int
    labels: np.ndarray | None
    settings: dict[str, Any]


def prepare(
    folder: Path,
    n: int,
    *,
    solver: str,
    steps: int,
    grid: str | None,
    label: str | None,
    guidance: float | None,
    seed: int,
) -> Job:
    """Read a run and check everything that was asked, before anything is compiled.

    Raises:
        InputError: not a run, an unknown solver, or labels and guidance that the run was not trained for.
        StoreCorrupt: a run folder that is damaged.
    """
    if (folder / REQUEST).exists() and not (folder / "config.json").exists():
        raise InputError(
            f"the run in {folder} is not finished; `kinema learn DATA -o {folder} --resume` goes on with it"
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        run = load_run(folder)
    for warning in said:
        tell(f"note: {warning.message}", style="yellow")
    classes = run.config.sample.classes
    labels = _labels(label, n, classes)
    generator: AbstractGenerator = run.generator
    if guidance is not None:
        if classes is None:
            raise InputError("--guidance needs a run trained with labels; this one has none")
        generator = Guided(generator, jnp.asarray(classes), guidance)  # pyright: ignore[reportCallIssue]
    if solver == "recommend":
        plan = _recommended(generator, run.shape, steps, grid, labels, seed)
    else:
        known = {"statistics": str(folder)} if solver == "dpm-solver-v3" and (folder / STATISTICS).exists() else {}
        plan = make(solver, run.generator.path, steps, grid, **known)
    for note in plan.notes:
        tell(f"note: {note}", style="yellow")
    settings = {
        "run": str(folder),
        "solver": solver,
        "steps": steps,
        "evaluations": plan.nfe * generator.calls,
        "seed": seed,
    }
    settings |= {} if grid is None else {"grid": grid}
    settings |= {} if guidance is None else {"guidance": guidance}
    return Job(run, generator, plan, n, labels, settings)


def _recommended(
    generator: AbstractGenerator, shape: Any, calls: int, grid: str | None, labels: np.ndarray | None, seed: int
) -> Plan:
    """The plan of at most `calls` calls that a pilot finds best, and why it was taken."""
    if grid is not None:
        raise InputError(f"--grid {grid} cannot be given with --solver recommend, which chooses the grid too")
    if generator.path.origin != "none":
        raise InputError("--solver recommend needs a path that begins at noise; name a solver")
    cond = None if labels is None else jnp.asarray(np.resize(labels, PILOT))
    tell(f"trying every solver with {calls} calls on {PILOT} starts: a minute or two with a small network")
    with bar("recommend", 100) as show:
        options: dict[str, Any] = {"cond": cond, "n": PILOT, "progress": lambda share: show(100 * share)}
        said = recommend(generator, calls, shape=shape, key=jr.key(seed), **options)
    tell(said.reason)
    return said.plan


def starts(job: Job, file: Path | None) -> dict[str, np.ndarray]:
    """What a path begins at, encoded, as the arguments of `sample`: `x0`, or `start` where samples begin at data.

    Raises:
        InputError: a file where the path has no use for one, none where it needs one, or one that does not fit.
    """
    path, name = job.generator.path, type(job.generator.path).__name__
    needed = path.origin != "none" or not path.has_source
    if file is None:
        if needed:
            raise InputError(f"--origin is missing: {name} begins at given samples; give a file of {job.n} or more")
        return {}
    if not needed:
        raise InputError(f"--origin {file} is of no use: {name} begins at noise; leave it out")
    arrays, codec = read(file).arrays, job.run.codec
    try:
        encoded = np.asarray(jax.vmap(codec.encode)(arrays))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--origin {file} does not hold samples like the run's: {error}") from error
    if encoded.shape[1:] != tuple(job.run.shape) or len(encoded) < job.n:
        raise InputError(
            f"--origin {file} must hold at least {job.n} samples of shape {job.run.shape}, got {encoded.shape}"
        )
    return {"x0" if path.origin != "none" else "start": encoded}


def in_parts(job: Job, draw: Callable[..., PyTree], *, name: str, whole: bool = False) -> PyTree:
    """All samples, in physical units on the host, by `draw(n, key=, cond=, rows=)` for one part after the other.

    Parts have one size, so that there is one compilation; what the last one has too many is left out. `whole` draws
    all in one part, for methods whose samples depend on each other.
    """
    size = job.n if whole else min(job.n, AT_ONCE)
    key, parts = jr.key(job.settings["seed"]), []
    with bar(name, job.n) as progress:
        for first in range(0, job.n, size):
            rows = np.minimum(np.arange(first, first + size), job.n - 1)
            cond = None if job.labels is None else jnp.asarray(job.labels[rows], jnp.int32)
            parts.append(jax.device_get(draw(size, key=jr.fold_in(key, first // size), cond=cond, rows=rows)))
            progress(min(first + size, job.n))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: job.n], *parts)


def as_motion(job: Job, states: PyTree, about: dict[str, Any]) -> Trajectory | Dataset:
    """Samples with what is known of them: times, labels, world and settings."""
    sample = job.run.config.sample
    origin = {name: value for name, value in (sample.world or {}).items() if name in ("world", "parameters", "units")}
    meta = {"version": kinema.__version__, **origin, **about}
    labels = None if job.labels is None else job.labels.astype(np.int32)
    ts = None if sample.ts is None else np.asarray(sample.ts)
    data = Dataset(states, labels, ts, meta=meta)
    return data if ts is None else data.trajectory()


def world_of(meta: dict[str, Any], name: str | None, chosen: dict[str, Any]) -> World | None:
    """The world named on the command line, else that of the data's `meta`; None if neither names one.

    Parameters of the data's own world stand unless chosen otherwise.
    """
    known = dict(meta.get("parameters") or {}) if name in (None, meta.get("world")) else {}
    name = name or meta.get("world")
    if name is None:
        if chosen:
            raise InputError(f"--param {next(iter(chosen))} needs a --world")
        return None
    return make_world(name, **{k: v for k, v in known.items() if v is not None} | chosen)


def _labels(label: str | None, n: int, classes: int | None) -> np.ndarray | None:
    if classes is None:
        if label is not None:
            raise InputError(f"--label {label} needs a run trained with labels; this one has none")
        return None
    wanted: Sequence[int] = range(classes)
    if label not in (None, "all"):
        try:
            wanted = [int(word) for word in str(label).split(",")]
        except ValueError:
            raise InputError(f"--label must be a class, a list such as 0,3,7, or all, got {label!r}") from None
        for number in wanted:
            if not 0 <= number < classes:
                raise InputError(f"--label must be in 0 .. {classes - 1}, got {number}")
    return np.resize(np.asarray(wanted), n)
