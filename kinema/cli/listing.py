"""`kinema list`: everything that has a name. Imports no JAX."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kinema.cli import names
from kinema.cli.app import app
from kinema.cli.options import Json
from kinema.cli.shell import show, show_json
from kinema.errors import choose

KINDS = {
    "worlds": (names.worlds, "kinema simulate WORLD"),
    "models": (names.models, "kinema learn --model NAME"),
    "paths": (names.paths, "kinema learn --path NAME"),
    "solvers": (names.solvers, "kinema generate --solver NAME"),
    "grids": (names.grids, "kinema generate --grid NAME"),
    "methods": (names.methods, "kinema steer --method NAME"),
    "studies": (names.studies, "kinema study SLUG"),
}


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help=f"Only {', '.join(KINDS)}.", metavar="KIND", autocompletion=lambda: list(KINDS)),
    ] = None,
    json: Json = False,
) -> None:
    """List everything that has a name, and what the studies found."""
    if kind is not None:
        choose(KINDS, kind, "kind")
    kinds = {name: about for name, about in KINDS.items() if kind in (None, name)}
    if json:
        show_json({name: _studies() if name == "studies" else find() for name, (find, _) in kinds.items()})
        return
    from kinema.tables import Table

    named = [(name, ", ".join(find()), use) for name, (find, use) in kinds.items() if name != "studies"]
    if named:
        from rich.padding import Padding
        from rich.text import Text

        for name, words, use in named:
            show(Text.assemble((name, "bold"), ("  ", ""), (use, "dim")))
            show(Padding(words, (0, 0, 1, 2)))
    if "studies" in kinds:
        rows = [(one["slug"], one["verdict"], one["claim"]) for one in _studies()]
        show(Table("studies", ("slug", "verdict", "claim"), rows, "Run one: kinema study SLUG").rich())


def _studies() -> list[dict[str, Any]]:
    from kinema.studies import catalog, load_evidence

    folder = Path("evidence")
    folder = folder if folder.is_dir() else names.KINEMA.parent / "evidence"
    found = []
    for slug, about in catalog().items():
        evidence = load_evidence(slug, folder, pictures=False)
        row = {"slug": slug, "title": about.title, "paper": about.paper, "claim": about.claim}
        found.append(row | {"verdict": evidence.verdict, "date": evidence.date, "device": evidence.device})
    return found
