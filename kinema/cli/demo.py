"""`kinema demo`, `bench`: the whole pipeline at once, and its speed beside others."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from kinema.cli import names
from kinema.cli.app import app
from kinema.cli.options import Overwrite, Seed
from kinema.errors import InputError, unknown


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder.", metavar="FOLDER")] = Path("out/collisions"),
    preset: Annotated[
        str, typer.Option(help="smoke (only to see it run), quick (minutes) or full (one GPU).", metavar="NAME")
    ] = "quick",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Run one job through all stages, on balls; ends with FOLDER/report.html."""
    from kinema.cli.shell import make_folder
    from kinema.studies import PRESETS

    if preset not in PRESETS:
        raise InputError(unknown("preset", preset, PRESETS))

    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out} exists; --overwrite replaces what the demo made there")
    make_folder(out)
    from kinema.studies.collisions import demo as run

    run(out, seed=seed, overwrite=overwrite, preset=preset)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(arguments: typer.Context) -> None:
    """Measure speed beside other libraries.

    Needs a checkout, and the peers that `make bench` installs. Arguments go to the benchmarks.
    """
    root = names.KINEMA.parent
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise InputError(
            f"benchmarks come with the source of Kinema, and there are none in {root}; use `make bench` in a checkout"
        )
    raise typer.Exit(
        subprocess.run([sys.executable, "-m", "benchmarks", *arguments.args], cwd=root, check=False).returncode
    )
