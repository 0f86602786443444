"""`kinema study`: claims of papers, measured, judged and drawn."""

from pathlib import Path
from typing import Annotated

import typer

from kinema.cli import names
from kinema.cli.app import app
from kinema.cli.options import Json
from kinema.cli.shell import FAILED, make_folder, one_line_errors, show, show_json, tell
from kinema.errors import InputError

OUT = Path("out/studies")


@app.command()
def study(
    slugs: Annotated[
        list[str] | None,
        typer.Argument(help="Which; `kinema list studies` shows them.", metavar="SLUG", autocompletion=names.studies),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All studies, and one page of them.")] = False,
    preset: Annotated[
        str,
        typer.Option(help="smoke (seconds), quick (minutes) or full (one GPU).", autocompletion=lambda: list(PRESETS)),
    ] = "quick",
    seeds: Annotated[int | None, typer.Option(min=1, help="How many. (3; smoke 1)", metavar="N")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where pages go.", metavar="FOLDER")] = OUT,
    keep: Annotated[Path | None, typer.Option(help="Where evidence is kept. (--out)", metavar="FOLDER")] = None,
    json: Json = False,
) -> None:
    """Measure a paper's claim against a baseline.

    kinema study collisions --preset quick --seeds 3
    """
    from kinema.errors import unknown
    from kinema.studies import catalog

    known = list(catalog())
    if everything == bool(slugs):
        raise InputError("name studies, or give --all")
    if preset not in PRESETS:
        raise InputError(unknown("preset", preset, PRESETS))
    chosen = known if everything else list(dict.fromkeys(slugs or ()))
    for slug in chosen:
        if slug not in known:
            raise InputError(unknown("study", slug, known))
    keep = out if keep is None else keep
    for folder in (out, keep):
        make_folder(folder)
    failed, results = [], []
    for number, slug in enumerate(chosen, 1):
        tell(f"[{number}/{len(chosen)}] {slug} ({preset})", style="bold")
        try:
            with one_line_errors():
                results.append(_measure(slug, preset, seeds, out, keep, quiet=json))
        except typer.Exit as failure:
            if len(chosen) == 1 or failure.exit_code != FAILED:
                raise
            failed.append(slug)
    if everything:
        from kinema.studies import overview_page

        tell(str(overview_page(keep).save(out / "index.html")))
    if json:
        show_json(results)
    if failed:
        tell(f"error: {len(failed)} of {len(chosen)} studies did not run: {', '.join(failed)}", style="bold red")
        raise typer.Exit(FAILED)


PRESETS = ("smoke", "quick", "full")
STYLES = {"reproduced": "bold green", "falls short": "bold yellow", "not run": "dim"}


def _measure(slug: str, preset: str, seeds: int | None, out: Path, keep: Path, *, quiet: bool) -> dict:
    from kinema.studies import get, metric_table, save_evidence, study_page

    evidence = get(slug).run(preset, None if seeds is None else range(seeds))  # type: ignore[arg-type]
    if preset != "smoke":  # too small to be evidence
        save_evidence(evidence, keep)
    page = study_page(evidence).save(out / f"{slug}.html")
    if not quiet:
        show(metric_table(tuple(evidence.metrics)).rich())
    tell(f"{evidence.verdict}: {evidence.why}", style=STYLES[evidence.verdict])
    tell(str(page))
    return evidence.to_json() | {"page": str(page)}
