"""`kinema report`: what was kept, drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli.app import app
from kinema.cli.shell import show
from kinema.errors import InputError

if TYPE_CHECKING:
    from kinema.report import Page


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of a run, or where `kinema study` kept evidence.", metavar="FOLDER")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page. (FOLDER/index.html)", metavar="FILE")
    ] = None,
) -> None:
    """Draw a run of `kinema learn`, or kept evidence, as one page; nothing is measured."""
    page = _run_page(folder) if (folder / "history.json").is_file() else _evidence_page(folder)
    show(str(page.save(folder / "index.html" if out is None else out)))


def _run_page(folder: Path) -> "Page":
    from kinema.generate.run import read_config
    from kinema.learn import History
    from kinema.report import learning_page

    made = {}
    if (folder / "config.json").is_file():
        config = read_config(folder)
        made = {"network": config.model, "path": config.path, "training": config.training}
    return learning_page(History.load(folder / "history.json"), title=folder.resolve().name, settings=made)


def _evidence_page(folder: Path) -> "Page":
    from kinema.studies import catalog, overview_page

    if not any((folder / f"{slug}.json").is_file() for slug in catalog()):
        raise InputError(
            f"{folder} holds neither a run nor evidence; `kinema study SLUG --keep {folder}` puts some there"
        )
    return overview_page(folder)
