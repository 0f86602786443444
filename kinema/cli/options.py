"""Options that several verbs share, so that one word means one thing everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from kinema.cli import names

Count = Annotated[int, typer.Option("-n", min=1, help="How many.", metavar="N")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same numbers.", metavar="N")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="A .zarr store or an .npz file.", metavar="FILE")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="A folder.", metavar="FOLDER")]
RunFolder = Annotated[Path, typer.Argument(help="What `kinema learn` made.", metavar="RUN")]
WorldParameters = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="A parameter of the world, NAME=VALUE; may be repeated.", metavar="NAME=VALUE"),
]
WorldName = Annotated[
    str | None,
    typer.Option(
        "--world", help="Whose law; by default that of the data.", metavar="NAME", autocompletion=names.worlds
    ),
]
SolverName = Annotated[
    str,
    typer.Option(
        "--solver",
        help="`kinema list` shows them; `recommend` tries them all.",
        metavar="NAME",
        autocompletion=lambda: [*names.solvers(), "recommend"],
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of the solver.", metavar="N")]
GridName = Annotated[
    str | None,
    typer.Option(
        "--grid", help="Where the steps lie; the solver knows a good one.", metavar="NAME", autocompletion=names.grids
    ),
]
Label = Annotated[
    str | None,
    typer.Option("--label", help="A class, a list such as 0,3,7, or all in turn (the default).", metavar="CLASS"),
]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Strength of classifier-free guidance; 1 is none.", metavar="X")
]
Origin = Annotated[
    Path | None,
    typer.Option("--origin", help="A file of starts, one for each sample, for paths that have them.", metavar="FILE"),
]
AtOnce = Annotated[int | None, typer.Option("--batch-size", min=1, help="How many at once; less memory.", metavar="N")]
