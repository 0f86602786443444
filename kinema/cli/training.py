"""What `learn` asks of a file and of a run that it goes on with."""

import json
from pathlib import Path
from typing import Any

from kinema.errors import InputError, StoreCorrupt, choose
from kinema.generate.path import PATHS
from kinema.motion.readers import read
from kinema.motion.weights import atomic_file
from kinema.simulate import make, worlds

KINDS: dict[str, tuple[type | None, ...]] = {
    "path": (str,),
    **dict.fromkeys(("steps", "batch_size", "seed"), (int,)),
    **dict.fromkeys(("rate", "ema", "held_out"), (float, int)),
    **dict.fromkeys(("labels", "augment"), (bool, type(None))),
    **dict.fromkeys(("model", "predicts", "origin"), (str, type(None))),
    "sizes": (dict,),
}


def keywords(file: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Everything that `generate.training.train` is called with, from a file of samples and what was asked for.

    Raises:
        InputError: a file that cannot be read, an unknown path, labels or symmetries that the data does not have.
    """
    data, asked = read(file), dict(request)
    del asked["seed"]
    asked["path"] = choose(PATHS, asked.pop("path"), "path")()
    labels, augment, start = asked.pop("labels"), asked.pop("augment"), asked.pop("origin")
    if labels and data.labels is None:
        raise InputError(f"--labels needs labels, and {file} has none")
    origin = {name: data.meta[name] for name in ("world", "parameters", "units") if data.meta.get(name) is not None}
    symmetry = None if augment is False or (start and not augment) else _symmetry(origin)
    if augment and symmetry is None:
        raise InputError(f"--augment needs a world with symmetries; {file} comes from {origin.get('world', 'none')}")
    known = {
        "labels": None if labels is False else data.labels,
        "ts": data.ts,
        "world": origin or None,
        "augment": symmetry,
        "origin": None if start is None else read(Path(start)).arrays,
    }
    return {"data": data.arrays, **known, **asked}


def save_request(file: Path, request: dict[str, Any]) -> None:
    """Keep what was asked for, so that a run can go on without being told again."""
    with atomic_file(file) as opened:
        opened.write(json.dumps(request, indent=1).encode())


def load_request(file: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What a run was asked for; `given` now must not differ.

    Raises:
        InputError: no run there, or one that was asked for something else.
        StoreCorrupt: the file is damaged.
    """
    if not file.is_file():
        raise InputError(f"{file.parent} holds no run to go on with; leave --resume out")
    try:
        request = json.loads(file.read_bytes())
        for name, kinds in KINDS.items():
            if type(request[name]) not in kinds:
                raise TypeError(f"{name} is {request[name]!r}")
        for name, value in given.items():
            if request[name] != value:
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option} was {request[name]!r} when the run began, got {value!r}; leave it out")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise StoreCorrupt(f"{file} is damaged: {error}") from error
    return request


def _symmetry(origin: dict[str, Any]):
    """The `augment` of a world that this installation knows."""
    if origin.get("world") not in worlds():
        return None
    chosen = {name: value for name, value in origin.get("parameters", {}).items() if value is not None}
    return getattr(make(origin["world"], **chosen), "augment", None)
