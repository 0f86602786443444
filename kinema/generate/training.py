"""`train`: from data to a generator, with a recipe that works for small motion and images and every choice open."""

import functools
import os
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

from kinema import learn, models
from kinema.errors import InputError
from kinema.generate.codec import Codec
from kinema.generate.objective import Denoising, Interpolating, LogitNormal, capped
from kinema.generate.path.gaussian import Linear
from kinema.generate.path.path import Path
from kinema.generate.run import Run, RunConfig, SampleSpec, begin_run, build, path_spec, save_run
from kinema.motion import Dataset

LOOKS = 20  # at the rows that are held out
CAPPED_VELOCITY = capped("velocity", 400.0)  # one object: another would be compiled anew


def train(
    data: PyTree,
    *,
    key,
    steps: int = 1350,
    labels=None,
    ts=None,
    world: dict[str, Any] | None = None,
    augment: Callable | None = None,
    origin: PyTree | None = None,
    path: Path | None = None,
    model: str | None = None,
    sizes: dict[str, Any] | None = None,
    predicts: str | tuple[str, str] | None = None,
    weight: str | Callable | None = None,
    times: str | Callable | None = None,
    batch_size: int = 128,
    rate: float = 2e-3,
    ema: float = 0.995,
    held_out: float = 0.0,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a generator of single samples of `data`: an array `(N, ...)`, or a dict of arrays of one shape.

    `labels (N,)` from 0 make it class-conditional, with the null label for guidance trained on a tenth of the batch.
    `ts` are the frame times of trajectories; `world` their world's name and parameters; `augment(key, sample)` maps
    one sample to one as likely, in physical units. `origin`, of the form of data, is where the path begins: row by row
    if the start is known, any number of samples if it is a random endpoint; the network then has two outputs, transport
    and noise, else `predicts`, or the data. Without `model`, the network is chosen by the sample's shape, and
    treats alike the bodies and axes that the `augment` of a world exchanges. The loss is that of the velocity, its
    weight capped at 400, at logit-normal times, unless `weight` and `times` say otherwise. `held_out` is the share of
    the rows that is not learnt from: the history's probe "held out" is the loss on them of the averaged weights, with
    the same noise at every look. With `folder` the run is kept there from the first checkpoint on, and `resume` goes on
    from its last. A second call with equal shapes and settings does not compile again.

    Example:
        >>> run = train(jr.normal(key, (256, 2)), key=key, steps=20, progress=False)
        >>> run.shape
        (2,)

    Raises:
        InputError: data that is not real numbers, is empty, not finite (the row is named) or does not vary; labels or
            times of another length, times that do not increase; an origin that does not fit path and data; `held_out`
            that leaves no row on either side; a folder that holds a run, or another run with `resume`.
        NotFinite: the loss stopped being a number.
    """
    states = _states(data, ts)
    codec = Codec.fit(states, channels=ts is not None)
    rows = len(jax.tree.leaves(states)[0])
    shape = tuple(jax.eval_shape(codec.encode, jax.tree.map(lambda leaf: leaf[0], states)).shape)
    classes, labels = _labels(labels, rows)
    batch = {"x1": states} | ({} if labels is None else {"cond": labels})
    name, chosen = (model, {}) if model else _suggest(shape, time=True if ts is not None else None, augment=augment)
    path = Linear() if path is None else path
    between, known = path.origin == "endpoint", path.origin == "condition"
    extra = {"classes": classes} if classes is not None else {}
    extra |= {"outputs": 2} if between else {"joined": 2} if known else {}
    spec = models.spec(name, shape=shape, **chosen | (sizes or {}) | extra)
    predicts = predicts or (("transport", "noise") if between else "data")
    batch |= _starts(origin, path, states, codec, augment)
    sample = SampleSpec(shape, codec.names, None if ts is None else tuple(map(float, ts)), classes, world)
    aside = _count_aside(held_out, rows)
    record = {"steps": steps, "batch_size": batch_size, "rate": rate, "ema": ema, "rows": rows - aside}
    config = RunConfig(path_spec(path), spec, sample, predicts, training=record)
    key_net, key_fit = jr.split(key)

    if between:
        batch["x1"] = np.asarray(jax.vmap(codec.encode)(states))
        objective = Interpolating(times="uniform" if times is None else times)
    else:
        objective = Denoising(
            weight=CAPPED_VELOCITY if weight is None else weight,
            times=LogitNormal(0.3, 1.2) if times is None else times,
            augment=_Encode(codec, _as_tree(augment)),
            unconditional=0.0 if classes is None else 0.1,
            null=classes,
        )
    probes = []
    if aside:
        order = np.asarray(jr.permutation(jr.fold_in(key, 1), rows))
        kept_out, batch = _rows(batch, order[:aside]), _rows(batch, order[aside:])
        probes = [_held_out_loss(objective, kept_out, every=max(1, steps // LOOKS), key=key)]
    net, optimizer = build(config, key=key_net), learn.adam(rate, steps)
    if folder is not None and not (FilePath(folder) / "checkpoints").exists():
        begin_run(folder, config, codec)
    fitted = learn.fit(
        net,
        objective,
        batch,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        key=key_fit,
        ema=ema,
        folder=folder,
        resume=resume,
        progress=progress,
        probes=probes,
    )
    run = Run(fitted.ema, codec, config, fitted.history)
    if folder is not None:
        save_run(folder, run)
    return run


def _rows(batch: dict[str, PyTree], chosen: np.ndarray) -> dict[str, PyTree]:
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def _held_out_loss(objective, rows: PyTree, *, every: int, key) -> learn.Probe:
    """The same rows and the same noise at every look, so that the curve shows the weights alone."""
    look = eqx.filter_jit(lambda model, rows: objective(model, rows, key)[0])
    return learn.Probe("held out", lambda model, _: look(model, rows), every, "ema")


def _count_aside(share: float, rows: int) -> int:
    aside = round(share * rows)
    if not (0 <= share < 1 and (share == 0 or 0 < aside < rows)):
        raise InputError(f"held_out must be a share of the rows in [0, 1) that leaves some on both sides, got {share}")
    return aside


class _Encode(eqx.Module):
    """One sample in physical units to the array that the network sees, after `augment`."""

    codec: Codec
    augment: Callable | None

    def __call__(self, key, one: PyTree) -> Array:
        return self.codec.encode(one if self.augment is None else self.augment(key, one))


def _as_tree(augment: Callable | None) -> Callable | None:
    """A partial function that compares by what is in it: a world makes a new one whenever it is asked."""
    if isinstance(augment, functools.partial):
        return jax.tree_util.Partial(augment.func, *augment.args, **augment.keywords)
    return augment


def _suggest(shape: tuple[int, ...], *, time: bool | None, augment: Callable | None) -> tuple[str, dict[str, Any]]:
    """The network for a shape; symmetries of balls say by `alike` and `square` that bodies and axes are exchanged."""
    said = augment.keywords if isinstance(augment, functools.partial) else {}
    name, sizes = models.suggest(shape, time=time, exchangeable=bool(said.get("alike")))
    if name == "motion_tokens" and said.get("square"):
        sizes = sizes | {"distinct_axes": False}
    return name, sizes


def _states(data: PyTree, ts) -> PyTree:
    """The data as float32 on the host, checked by the rule of `motion.Dataset`."""

    def real(name: str, values) -> np.ndarray:
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise InputError(f"{name} must be one array, got rows of different lengths") from error
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name} must hold real numbers, got {array.dtype}")
        return array

    arrays = (
        {name: real(name, values) for name, values in data.items()} if isinstance(data, dict) else real("data", data)
    )
    Dataset(arrays, ts=None if ts is None else np.asarray(ts))
    return jax.tree.map(lambda array: array.astype(np.float32), arrays)


def _starts(origin: PyTree | None, path: Path, states: PyTree, codec: Codec, augment) -> dict[str, np.ndarray]:
    """The encoded starts of a path as part of a batch, as many as there are data."""
    if path.origin == "none":
        if origin is not None:
            raise InputError(
                f"origin was given, but {type(path).__name__} begins at noise or at the data; leave it out"
            )
        return {}
    if origin is None:
        raise InputError(
            f"origin is missing: {type(path).__name__} begins at a {path.origin}; give the samples it starts at"
        )
    if augment is not None:
        raise InputError("augment changes data and not where it starts; leave it out for paths with an origin")
    starts = _states(origin, None)
    one, other = (jax.tree.map(lambda leaf: leaf.shape[1:], tree) for tree in (states, starts))
    if one != other:
        raise InputError(f"origin must have samples like data, {one}, got {other}")
    rows, found = (len(jax.tree.leaves(tree)[0]) for tree in (states, starts))
    if path.origin == "condition" and found != rows:
        raise InputError(f"origin must have a row for each of data, {rows}, got {found}")
    encoded = np.asarray(jax.vmap(codec.encode)(starts))
    return {"x0": encoded[np.arange(rows) % found]}


def _labels(labels, rows: int):
    if labels is None:
        return None, None
    labels = np.asarray(labels)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise InputError(f"labels must be {rows} whole numbers, got shape {labels.shape} of {labels.dtype}")
    if labels.min() < 0:
        raise InputError(f"labels must start at 0, got {labels.min()} in row {int(labels.argmin())}")
    return int(labels.max()) + 1, jnp.asarray(labels, jnp.int32)
