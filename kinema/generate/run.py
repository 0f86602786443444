"""A run folder: a trained generator on disk, as data and names, never code.

run/config.json           path, network and what one sample is
run/codec.safetensors     from physical units and back
run/weights.safetensors   the averaged weights, once training is done
run/history.json          the training curve
run/checkpoints/          to go on from, and to sample from meanwhile
"""

import json
import math
import os
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from kinema import learn, models
from kinema.errors import InputError, StoreCorrupt, choose
from kinema.generate.codec import Codec
from kinema.generate.generator import Generator
from kinema.generate.path import PATHS, Path
from kinema.learn import History
from kinema.motion.weights import atomic_file, load_weights, read_specs, save_weights

FORMAT = 1
WEIGHTS, CODEC = "weights.safetensors", "codec.safetensors"


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
    predicts: str | tuple[str, str] = "data"
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
            if type(path.noise) is not type(kind().noise) or path.origin != kind().origin:
                raise InputError(f"a run folder holds {kind.__name__} with its own noise law and origin only")
            values = {f.name: getattr(path, f.name) for f in fields(path) if f.name not in ("noise", "origin")}
            for parameter, value in values.items():
                if not isinstance(value, str | float | int | tuple):
                    raise InputError(
                        f"a run folder holds numbers, tables and names: {parameter} of {kind.__name__} is {value}"
                    )
            return {"name": name} | {p: _plain(value) for p, value in values.items()}
    raise InputError(
        f"{type(path).__name__} is not one of the named paths {sorted(PATHS)}, so a run folder cannot hold it"
    )


def _plain(value: str | float | tuple) -> str | float | list:
    """A path's parameter as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str) else float(value)


def begin_run(folder: str | os.PathLike, config: RunConfig, codec: Codec) -> None:
    """Write all of a run but its weights: with a checkpoint beside it, it can be loaded.

    Raises:
        InputError: the folder holds weights already.
    """
    folder = FilePath(folder)
    if (folder / WEIGHTS).exists():
        raise InputError(f"{folder} already holds a run ({WEIGHTS}); give another folder")
    _describe(folder, config, codec)


def save_run(folder: str | os.PathLike, run: Run) -> None:
    """Write weights, then the description that makes the folder a run."""
    folder = FilePath(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, {"net": run.generator.net})
    _describe(folder, run.config, run.codec)


def load_run(folder: str | os.PathLike) -> Run:
    """Read a run folder.

    A run that was left before its end is read with the averaged weights of its last checkpoint, and a warning.

    Raises:
        InputError: not a run folder, of a newer format, or one that has learnt nothing yet.
        StoreCorrupt: a description, weights or checkpoints that are damaged.
    """
    folder = FilePath(folder)
    config = read_config(folder)
    if (folder / WEIGHTS).exists():
        _check_sizes(folder, config.model)
    like = eqx.filter_eval_shape(lambda: build(config, key=jr.key(0)))
    numbers = jnp.zeros(config.sample.shape[-1:], "float32")
    codec = load_weights(folder / CODEC, Codec(numbers, numbers, config.sample.names))
    if (folder / "checkpoints").is_dir() and not (folder / WEIGHTS).exists():
        return Run(_from_checkpoint(folder, config), codec, config)
    net = load_weights(folder / WEIGHTS, {"net": like.net})["net"]
    return Run(eqx.tree_at(lambda g: g.net, like, net), codec, config)


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
        _check_kinds(content["path"], content["model"], spec["shape"], spec["names"])
        predicts = content.get("predicts", "data")
        content["predicts"] = tuple(predicts) if isinstance(predicts, list) else predicts
        return RunConfig(**content | {"sample": SampleSpec(**spec)})
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreCorrupt(f"{file} is not a run's description: {error}") from error


def _check_kinds(path: Any, model: Any, shape: Any, names: Any) -> None:
    """TypeError where a description holds something else than names and whole sizes in their places."""
    for what, named in (("path", path), ("model", model)):
        if not isinstance(named, dict) or not isinstance(named.get("name"), str):
            raise TypeError(f"{what} is {named!r}, not a name with parameters")
    for what, sizes in (("sample", shape), ("model", model.get("shape"))):
        if not isinstance(sizes, list | tuple) or not all(type(n) is int and n > 0 for n in sizes):
            raise TypeError(f"the shape of {what} is {sizes!r}")
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"the names of states are {names!r}")


def _check_sizes(folder: FilePath, model: dict[str, Any]) -> None:
    """No size of a network is larger than the count of its weights; one that is would be built for hours."""
    weights = sum(math.prod(spec["shape"]) for spec in read_specs(folder / WEIGHTS).values())
    for name, size in model.items():
        if isinstance(size, int) and size > weights:
            raise StoreCorrupt(f"{folder / 'config.json'} says {name}={size}, but {WEIGHTS} holds {weights} numbers")


def _describe(folder: FilePath, config: RunConfig, codec: Codec) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / CODEC, codec)
    with atomic_file(folder / "config.json") as file:
        file.write(json.dumps({"format": FORMAT} | asdict(config), indent=1).encode())


def _from_checkpoint(folder: FilePath, config: RunConfig) -> Generator:
    names = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    step = max((int(name) for name in names if name.isdecimal()), default=0)
    resume = f"`kinema learn DATA -o {folder} --resume` goes on with it"
    if step == 0:
        raise InputError(f"the run in {folder} has not learnt anything yet; {resume}")
    warnings.warn(
        f"the run in {folder} is not finished, its last checkpoint is used (step {step}); {resume}", stacklevel=3
    )
    return learn.load_model(folder, build(config, key=jr.key(0)))
