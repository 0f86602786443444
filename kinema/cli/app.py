"""The `kinema` program: what all verbs share."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kinema.cli.shell import one_line_errors, show


class Verbs(TyperGroup):
    """The commands, with errors as one line; `--debug` is understood before and after the verb."""

    debug = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        self.debug = "--debug" in args[:end]
        return super().parse_args(ctx, [a for i, a in enumerate(args) if a != "--debug" or i > end])

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors(self.debug):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Verbs,
    name="kinema",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A job from end to end: kinema demo -o out/collisions",
)


def version(asked: bool) -> None:
    if asked:
        import platform
        from importlib.metadata import version as installed

        show(f"kinema {installed('kinema')} (jax {installed('jax')}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def kinema(
    version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; goes anywhere.")] = False,
) -> None:
    """Models of motion: simulate → learn → generate → steer → verify.

    Each verb reads and writes files, so any stage can be replaced by your own.
    """


def main() -> None:
    """Run the program."""
    app(prog_name="kinema")
