"""`kinema learn`: a generator trained on any file of samples, as a run folder."""

import time
from pathlib import Path
from typing import Annotated

import typer

from kinema.cli import names
from kinema.cli.app import app
from kinema.cli.options import Json, OutFolder, Overwrite
from kinema.cli.shell import done, new_folder, parameters
from kinema.errors import InputError

REQUEST = "request.json"
OURS = (REQUEST, "config.json", "codec.safetensors", "weights.safetensors", "history.json")
OURS += ("frozen.safetensors", "checkpoints", "index.html")
DEFAULTS = {
    "path": "linear",
    "model": None,
    "sizes": {},
    "predicts": None,
    "origin": None,
    "steps": 1350,
    "batch_size": 128,
    "rate": 2e-3,
    "ema": 0.995,
    "held_out": 0.0,
    "labels": None,
    "augment": None,
    "seed": 0,
}


@app.command()
def learn(
    data: Annotated[Path, typer.Argument(help=".zarr, .npz, .h5 or a folder of pictures.", metavar="DATA")],
    out: OutFolder,
    path: Annotated[
        str | None,
        typer.Option(help="How noise and data join. (linear)", metavar="NAME", autocompletion=names.paths),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The network. (chosen by the data's shape)", metavar="NAME", autocompletion=names.models),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="A size of the network; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    predicts: Annotated[
        str | None, typer.Option(help="data, noise, velocity or score. (data)", metavar="FIELD")
    ] = None,
    origin: Annotated[
        Path | None, typer.Option(help="A file like DATA: where bridges and interpolants begin.", metavar="FILE")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. (1350)", metavar="N")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step. (128)", metavar="N")] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate. (0.002)", metavar="X")] = None,
    ema: Annotated[float | None, typer.Option(help="Memory of the averaged weights. (0.995)", metavar="X")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the samples kept aside to watch the loss on. (0)", metavar="X")
    ] = None,
    labels: Annotated[
        bool | None, typer.Option("--labels/--no-labels", help="Learn each label's law. (if there are labels)")
    ] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Use symmetries of the data's world. (if it has any)")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same weights. (0)", metavar="N")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out as it was asked for.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a generator on a file of samples.

    kinema learn balls.zarr -o run/

    Ctrl-C leaves a whole checkpoint; --resume goes on from there, to the same weights. `kinema report run/` draws the
    curves of a run.
    """
    started = time.perf_counter()
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    options = {
        "path": path,
        "model": model,
        "predicts": predicts,
        "origin": None if origin is None else str(origin),
        "steps": steps,
        "batch_size": batch_size,
        "rate": rate,
    }
    options |= {"ema": ema, "held_out": held_out, "labels": labels, "augment": augment, "seed": seed}
    options |= {"sizes": parameters(size, "--size") if size else None}
    given = {name: value for name, value in options.items() if value is not None}

    from kinema.cli.training import keywords, load_request, save_request

    request = load_request(out / REQUEST, given) if resume else DEFAULTS | given
    chosen = keywords(data, request)

    import jax
    import jax.random as jr

    from kinema.generate.training import train

    with new_folder(out, overwrite=overwrite, resume=resume, ours=OURS):
        if not resume:
            save_request(out / REQUEST, request)
        try:
            run = train(**chosen, key=jr.key(request["seed"]), folder=out, resume=resume)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"kinema learn {data} -o {out} --resume goes on") from None
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.generator) if hasattr(leaf, "size"))
    loss = None if run.history is None else float(run.history.loss[-50:].mean())
    model_name = run.config.model["name"]
    facts = {"model": model_name, "weights": weights, "steps": request["steps"], "loss": loss, "seed": request["seed"]}
    what = f"{model_name} of {weights:,} weights, {request['steps']} steps, last loss {loss:.4g}"
    done(out, what, started, as_json=json, **facts)
