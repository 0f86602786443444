"""A run folder: a trained generator on disk, as data and names, never code.

run/config.json           path, network, codec and what one sample is
run/weights.safetensors   the averaged weights and the codec's numbers
run/history.json          the training curve
run/checkpoints/          to go on from
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from kinema import models
from kinema.errors import InputError, StoreCorrupt, choose
from kinema.generate.codec import Codec
from kinema.generate.generator import Generator
from kinema.generate.path.gaussian import PATHS
from kinema.generate.path.path import Path
from kinema.learn import History
from kinema.motion.weights import atomic_file, load_weights, save_weights

FORMAT = 1


@dataclass(frozen=True)
class SampleSpec:
    """What one sample is: the arrays of a state, the times of its frames, its labels, the world it came from.

    `shape` is that of the encoded array; `names` the states stacked in it (none: a bare array); `ts` the frame times
    of a trajectory; `classes` the number of labels; `world` a world's name and parameters.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    ts: tuple[float, ...] | None = None
    classes: int | None = None
    world: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything that rebuilds a generator but its numbers; all of it JSON."""

    path: dict[str, Any]
    model: dict[str, Any]
    sample: SampleSpec
    predicts: str = "data"
    sigma_data: float = 1.0
    training: dict[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """A generator with the codec to physical units and the description that rebuilds both."""

    generator: Generator
    codec: Codec
    config: RunConfig
    history: History | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.config.sample.shape


def build(config: RunConfig, *, key) -> Generator:
    """A generator with fresh weights.

    Raises:
        InputError: an unknown path or network, or parameters that it does not take.
    """
    parameters = dict(config.path)
    make_path = choose(PATHS, parameters.pop("name", "?"), "path")
    try:
        path = make_path(**parameters)
    except TypeError as error:
        raise InputError(f"path {config.path} has parameters that it does not take: {error}") from error
    net = models.make(**config.model, key=key)
    return Generator(path=path, net=net, predicts=config.predicts, sigma_data=config.sigma_data)


def path_spec(path: Path) -> dict[str, Any]:
    """A path as a name and numbers.

    Raises:
        InputError: a path that is not in `PATHS`, or one of another noise law than its own.
    """
    for name, kind in PATHS.items():
        if type(path) is kind:
            if not eqx.tree_equal(path.noise, kind().noise) or path.origin != kind().origin:
                raise InputError(f"a run folder holds {kind.__name__} with its own noise law and origin only")
            numbers = [f.name for f in fields(path) if f.name not in ("noise", "origin")]
            return {"name": name} | {number: float(getattr(path, number)) for number in numbers}
    raise InputError(
        f"{type(path).__name__} is not one of the named paths {sorted(PATHS)}, so a run folder cannot hold it"
    )


def save_run(folder: str | os.PathLike, run: Run) -> None:
    """Write weights, then the description that makes the folder a run."""
    folder = FilePath(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "weights.safetensors", {"net": run.generator.net, "codec": run.codec})
    with atomic_file(folder / "config.json") as file:
        file.write(json.dumps({"format": FORMAT} | asdict(run.config), indent=1).encode())


def load_run(folder: str | os.PathLike) -> Run:
    """Read a run folder.

    Raises:
        InputError: not a run folder, or of a newer format.
        StoreCorrupt: a description or weights that are damaged.
    """
    folder = FilePath(folder)
    config = read_config(folder)
    like = eqx.filter_eval_shape(lambda: build(config, key=jr.key(0)))
    numbers = jnp.zeros(config.sample.shape[-1:], "float32")
    codec = Codec(numbers, numbers, config.sample.names)
    loaded = load_weights(folder / "weights.safetensors", {"net": like.net, "codec": codec})
    return Run(eqx.tree_at(lambda g: g.net, like, loaded["net"]), loaded["codec"], config)


def read_config(folder: str | os.PathLike) -> RunConfig:
    """The description of a run folder, checked."""
    file = FilePath(folder) / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is not a run folder: it has no config.json; `kinema learn` makes one")
    try:
        content = json.loads(file.read_text())
        if content.pop("format") > FORMAT:
            raise InputError(f"{folder} was written by a newer Kinema")
        spec: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["sample"].items()
        }
        return RunConfig(**content | {"sample": SampleSpec(**spec)})
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreCorrupt(f"{file} is not a run's description: {error}") from error
