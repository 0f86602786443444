"""`kinema verify`: does motion obey its world's law, and is it distributed like other motion? A table and a page."""

import time
from pathlib import Path
from typing import Annotated

import typer

from kinema.cli.app import app
from kinema.cli.options import Json, Overwrite, Seed, WorldName, WorldParameters
from kinema.cli.shell import parameters, show, show_json, tell
from kinema.errors import InputError

PAGE = "report.html"


@app.command()
def verify(
    motion: Annotated[Path, typer.Argument(help=".zarr, .npz, .h5 or a folder of pictures.", metavar="DATA")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=f"A folder for {PAGE}; without it, only the table.", metavar="FOLDER"),
    ] = None,
    world: WorldName = None,
    param: WorldParameters = None,
    against: Annotated[
        Path | None, typer.Option(help="Samples to compare with, held out from training.", metavar="DATA")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Judge motion by its world's law and by other motion.

    kinema verify steered.zarr --world collisions --against held.zarr -o report/
    """
    started = time.perf_counter()
    chosen = parameters(param or ())
    page = None if out is None else _free_page(out, overwrite=overwrite)
    from kinema.cli.findings import find
    from kinema.motion.readers import read

    data = read(motion)
    found = find(data, motion.stem, None if against is None else read(against), world=world, chosen=chosen, seed=seed)
    if page is not None:
        from kinema.cli.page import draw

        draw(found).save(page)
    if json:
        show_json(found.to_json() | {"report": None if page is None else str(page)})
        return
    for table in found.tables:
        show(table.rich())
    if page is not None:
        tell(f"{page} ({time.perf_counter() - started:.1f} s)")


def _free_page(folder: Path, *, overwrite: bool) -> Path:
    from kinema.cli.shell import make_folder

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out must be a folder")
    if (folder / PAGE).exists() and not overwrite:
        raise InputError(f"{folder / PAGE} exists; --overwrite replaces it")
    make_folder(folder)
    return folder / PAGE
