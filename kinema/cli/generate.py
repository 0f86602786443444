"""`kinema generate`: new samples from a trained run, as a file."""

import time

from kinema.cli.app import app
from kinema.cli.options import (
    AtOnce,
    Count,
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
    Steps,
)
from kinema.cli.shell import done, free_file


@app.command()
def generate(
    run: RunFolder,
    out: OutFile,
    n: Count = 256,
    solver: SolverName = "dpmpp-2m",
    steps: Steps = 12,
    grid: GridName = None,
    label: Label = None,
    guidance: Guidance = None,
    origin: Origin = None,
    batch_size: AtOnce = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Generate new samples from a trained run.

    kinema generate run/ -n 256 --steps 12 -o new.zarr
    """
    started = time.perf_counter()
    from kinema.cli.files import ENDINGS, write

    free_file(out, overwrite=overwrite, endings=ENDINGS)
    from kinema.cli.sampling import as_motion, in_parts, prepare, starts
    from kinema.generate import sample

    job = prepare(run, n, solver=solver, steps=steps, grid=grid, label=label, guidance=guidance, seed=seed)
    begins = starts(job, origin)

    def draw(size, *, key, cond, rows):
        options = {name: values[rows] for name, values in begins.items()} | {"cond": cond, "batch_size": batch_size}
        drawn = sample(job.generator, job.plan, size, key=key, shape=job.run.shape, **options)
        return job.run.codec.decode(drawn.x)

    states = in_parts(job, draw, name="generate")
    write(out, as_motion(job, states, {"generated": job.settings}), overwrite=overwrite)
    facts = {"samples": n, "solver": solver, "evaluations": job.settings["evaluations"], "seed": seed}
    done(out, f"{n} samples, {facts['evaluations']} evaluations each", started, as_json=json, **facts)
