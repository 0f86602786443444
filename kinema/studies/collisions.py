"""Collisions: two balls from simulation to verified motion. The main job, as a study and as a demo with artifacts."""

import os
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import jax.random as jr
import numpy as np

from kinema.generate import Run
from kinema.motion import Trajectory
from kinema.studies import collisions_page
from kinema.studies.collisions_job import (
    EVALUATIONS,
    LAWS,
    SIZES,
    Measured,
    learn_motion,
    measure,
    plan_of,
    simulate_all,
)
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study


@study(
    "collisions",
    "Kang et al., 2025, arXiv 2411.02385",
    "A generator of two colliding balls obeys their law to a third of a typical step in 12 evaluations; one projection "
    "by the world makes the law exact, and both together restore noisy, hidden motion better than the law alone.",
    title="Collisions, from simulation to verified motion",
    stage="pipeline",
)
def run(preset: str, seeds: Sequence[int]) -> Evidence:
    sizes = SIZES[preset]
    results, slow = [], []
    for seed in seeds:
        key_data, key_fit, key_judge = jr.split(jr.key(seed), 3)
        world, data, held = simulate_all(sizes, key=key_data)
        trained = learn_motion(world, data, sizes, key=key_fit, progress=True)
        results.append(measure(world, trained, held, sizes, key=key_judge))
        if preset == "full":
            other = learn_motion(world, data, sizes, key=key_fit, progress=True, predicts="velocity")
            slow.append(measure(world, other, held, sizes, key=key_judge))
    return Evidence(
        metrics=metrics(results, slow),
        figures=collisions_page.figures(results),
        tables=collisions_page.tables(results),
        animations=collisions_page.animations(results[0]),
        settings={"preset sizes": vars(sizes), "evaluations": EVALUATIONS},
    )


def metrics(results: Sequence[Measured], velocity: Sequence[Measured] = ()) -> list[Metric]:
    """What the claim demands, once for each seed."""
    best = next(name for name in results[0].motions if name.startswith("best"))

    def law(motion: str, name: str) -> list[float]:
        return [one.errors[motion].means()[name] for one in results]

    def against_truth(name: str) -> list[float]:
        return [abs(s / t - 1) for s, t in zip(law("steered", name), law("true", name))]

    largest = [max(one.errors["steered"].means()[name] for name in LAWS) for one in results]
    both = [max(one.restored.errors["both"].means()[name] for name in LAWS) for one in results]
    rms = {way: [one.restored.rms[way] for one in results] for way in results[0].restored.rms}
    found = [
        Metric(f"replay error at {EVALUATIONS} evaluations", law("generated", "replay"), 0.35),
        Metric("kinematic error", law("generated", "kinematic"), 0.05),
        Metric("momentum error", law("generated", "momentum"), 0.08),
        Metric("energy error", law("generated", "energy"), 0.31),
        Metric("distance to simulation", [one.distance["generated"] for one in results], 0.006),
        Metric(
            "replay error, best of 16 over one",
            [a / b for a, b in zip(law(best, "replay"), law("generated", "replay"))],
            0.5,
        ),
        Metric("projected: largest law error", largest, 1e-5),
        Metric(
            "projected: speed off by", [abs(s - t) for s, t in zip(law("steered", "speed"), law("true", "speed"))], 0.02
        ),
        Metric("projected: hits off by", against_truth("hits"), 0.1),
        Metric("projected: pair hits off by", against_truth("pairs"), 0.1),
        Metric("projected: distance to simulation", [one.distance["steered"] for one in results], 0.006),
        Metric("projected: moved by", [one.moved for one in results], 0.6),
        Metric("projected: time over unsteered", [one.time_ratio for one in results], 1.1, unit="x"),
        Metric(
            "restored: error over that of the law alone", [a / b for a, b in zip(rms["both"], rms["law alone"])], 0.85
        ),
        Metric("restored: largest law error", both, 1e-5),
        Metric("restored: error", rms["both"], baseline=rms["law alone"], against="law alone"),
    ]
    if velocity:
        kinematic = [one.errors["generated"].means()["kinematic"] for one in velocity]
        found.append(
            Metric(
                "kinematic error over that of a velocity network",
                [a / b for a, b in zip(law("generated", "kinematic"), kinematic)],
                0.6,
            )
        )
    return found


def demo(folder: str | os.PathLike, *, seed: int = 0, overwrite: bool = False, preset: str = "quick") -> Path:
    """The whole job with its artifacts: balls.zarr, run/, new.zarr, steered.zarr and report.html in `folder`.

    Prints what each stage does and ends with the table of law errors.

    Raises:
        InputError: an artifact is there already and `overwrite` is not given.
    """
    from rich.console import Console

    folder, sizes, console = Path(folder), SIZES[preset], Console(stderr=True)
    key_data, key_fit, key_judge = jr.split(jr.key(seed), 3)

    @contextmanager
    def stage(title: str):
        with console.status(title):
            yield
        console.print(f"[green]done[/] {title}", highlight=False)

    with stage(f"simulate: {sizes.trajectories} motions of two balls"):
        world, data, held = simulate_all(sizes, key=key_data)
        data.save(folder / "balls.zarr", overwrite=overwrite)
        held.save(folder / "held.zarr", overwrite=overwrite)
    if overwrite:
        remove_run(folder / "run")
    console.print(f"learn: {sizes.steps} steps")
    trained = learn_motion(world, data, sizes, key=key_fit, folder=folder / "run", progress=True)
    result = measure(world, trained, held, sizes, key=key_judge, stage=stage)
    for name, file in (("generated", "new.zarr"), ("steered", "steered.zarr")):
        result.motions[name].save(folder / file, overwrite=overwrite)
    noisy(result, world.ts).save(folder / "noisy.zarr", overwrite=overwrite)
    page = collisions_page.page(result, metrics([result]), seed=seed, sizes=vars(sizes))
    path = page.save(folder / "report.html")
    out = Console()
    for table in collisions_page.tables([result]):
        out.print(table.rich())
    out.print(f"{path}")
    return path


def noisy(result: Measured, ts: np.ndarray) -> Trajectory:
    """The observation that the demo restored, as a file that `kinema steer --observed` takes."""
    observed = result.restored.observed
    meta = dict(result.motions["true"].meta) | {"noise": observed.noise}
    return Trajectory(ts, observed.states, {"seen": observed.seen}, meta, single=False)


def remove_run(folder: Path) -> None:
    """Clear a run folder that the demo made before."""
    import shutil

    if (folder / "config.json").is_file() or (folder / "checkpoints").is_dir():
        shutil.rmtree(folder)


__all__ = ["Run", "demo", "metrics", "plan_of", "run"]
