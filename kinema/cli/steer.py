"""`kinema steer`: generated motion moved toward a law, or toward what was seen of it, as a file."""

import time
from pathlib import Path
from typing import Annotated

import typer

from kinema.cli import names
from kinema.cli.app import app
from kinema.cli.options import (
    GridName,
    Guidance,
    Json,
    Label,
    Origin,
    OutFile,
    Overwrite,
    RunFolder,
    Seed,
    SolverName,
    WorldName,
    WorldParameters,
)
from kinema.cli.shell import done, free_file, parameters
from kinema.errors import InputError


@app.command()
def steer(
    run: RunFolder,
    out: OutFile,
    n: Annotated[int | None, typer.Option("-n", min=1, help="How many. (256, or all observed)", metavar="N")] = None,
    world: WorldName = None,
    param: WorldParameters = None,
    method: Annotated[
        str | None, typer.Option(help="How. (law-projection)", metavar="NAME", autocompletion=names.methods)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the method, such as n=16; may be repeated.", metavar="NAME=VALUE"),
    ] = None,
    observed: Annotated[
        Path | None,
        typer.Option(help="Restore the motion in this file, noisy and with hidden frames.", metavar="FILE"),
    ] = None,
    noise: Annotated[
        list[str] | None, typer.Option(help="How noisy it is: standard deviation of an array.", metavar="NAME=X")
    ] = None,
    solver: SolverName = "dpmpp-2m",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the solver (12), or rounds of restoring (16).", metavar="N")
    ] = None,
    grid: GridName = None,
    label: Label = None,
    guidance: Guidance = None,
    origin: Origin = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Steer generation to a world's law, or restore motion.

    kinema steer run/ --world collisions --method law-projection -n 256 -o steered.zarr

    kinema steer run/ --observed noisy.zarr --noise x=0.05 --noise v=0.2 -o restored.zarr
    """
    started = time.perf_counter()
    chosen, settings, levels = (
        parameters(param or ()),
        parameters(setting or (), "--set"),
        parameters(noise or (), "--noise"),
    )
    if observed is None and levels:
        raise InputError("--noise says how noisy --observed is; give that too")
    if observed is not None and method is not None:
        raise InputError(f"--observed is restored, --method {method} is another way to steer; give one of them")
    if observed is not None and settings:
        raise InputError(f"--set {next(iter(settings))} is for a --method; restoring has --steps and --noise")
    from kinema.cli.files import ENDINGS, write

    free_file(out, overwrite=overwrite, endings=ENDINGS)
    from kinema.cli import methods
    from kinema.cli.observed import read_observed, some
    from kinema.cli.sampling import as_motion, in_parts, prepare, starts, world_of
    from kinema.generate.run import read_config
    from kinema.steer import restore
    from kinema.steer import steer as run_controller

    sample = read_config(run).sample
    if sample.ts is None:
        raise InputError(f"{run} does not generate motion (its samples have no times), so there is no law to steer to")
    law = world_of(sample.world or {}, world, chosen)
    seen = controller = None
    if observed is not None:
        seen = read_observed(observed, sample, levels)
        n, method, steps = min(n or len(seen.seen), len(seen.seen)), "restore", steps or 16
    elif law is None:
        raise InputError("whose law? Give --world; the run's data names none")
    else:
        n, method, steps = n or 256, method or "law-projection", steps or 12
        controller = methods.make(method, law, settings)
    job = prepare(run, n, solver=solver, steps=steps, grid=grid, label=label, guidance=guidance, seed=seed)
    begins = starts(job, origin)
    if seen is not None and begins:
        raise InputError(f"--observed is restored from noise; {type(job.generator.path).__name__} begins at samples")
    gen, codec, spent, drawn = job.generator, job.run.codec, {"evaluations": 0, "rewards": 0}, 0

    def draw(size, *, key, cond, rows):
        nonlocal drawn
        if seen is not None:
            result = restore(gen, codec, some(seen, rows), key=key, world=law, rounds=steps, cond=cond)
        else:
            begun = {name: values[rows] for name, values in begins.items()} | {"codec": codec, "cond": cond}
            result = run_controller(gen, job.plan, controller, size, key=key, shape=job.run.shape, **begun)
        drawn += size
        for name in spent:
            spent[name] += int(getattr(result.ledger, name))
        return result.x

    states = in_parts(job, draw, name=method, whole=method in methods.POPULATION)
    about = {"method": method, "run": str(run), "seed": seed, **spent}
    about |= {"rounds": steps, "observed": str(observed)} if seen is not None else job.settings | settings | spent
    write(out, as_motion(job, states, {"steered": about}), overwrite=overwrite)
    facts = {"samples": n, "method": method, **spent, "seed": seed}
    each = spent["evaluations"] // drawn
    done(out, f"{n} samples by {method}, {each} evaluations each", started, as_json=json, **facts)
