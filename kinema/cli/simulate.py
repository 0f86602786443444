"""`kinema simulate`: a world's true motion, as a file."""

import time
from typing import Annotated

import typer

from kinema.cli import names
from kinema.cli.app import app
from kinema.cli.options import Count, Json, OutFile, Overwrite, Seed, WorldParameters
from kinema.cli.shell import bar, done, free_file, parameters

AT_ONCE = 16_384  # trajectories simulated together; seeds count in these, so it is part of the format of a seed


@app.command()
def simulate(
    world: Annotated[str, typer.Argument(help="The world.", metavar="WORLD", autocompletion=names.worlds)],
    out: OutFile,
    n: Count = 1024,
    param: WorldParameters = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Simulate a world's true motion.

    kinema simulate collisions -n 4096 -p balls=3 -o balls.zarr
    """
    started = time.perf_counter()
    chosen = parameters(param or ())
    from kinema.cli.files import ENDINGS, join, write

    free_file(out, overwrite=overwrite, endings=ENDINGS)
    import jax.random as jr

    from kinema.simulate import make

    made = make(world, **chosen)
    key, parts = jr.key(seed), []
    with bar("simulate", n) as progress:
        for first in range(0, n, AT_ONCE):
            parts.append(made.simulate(min(AT_ONCE, n - first), key=jr.fold_in(key, first // AT_ONCE)))
            progress(min(first + AT_ONCE, n))
    motion = join(parts, {"seed": seed})
    write(out, motion.check(), overwrite=overwrite)
    facts = {"world": made.name, "trajectories": n, "frames": len(motion), "seed": seed}
    done(out, f"{n} trajectories of {made.name}, {len(motion)} frames", started, as_json=json, **facts)
