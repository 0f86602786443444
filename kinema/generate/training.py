"""`train`: from data to a generator, with a recipe that works for small motion and images and every choice open."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from kinema import learn, models
from kinema.errors import InputError
from kinema.generate.codec import Codec
from kinema.generate.objective import Denoising, LogitNormal, capped
from kinema.generate.path.gaussian import Linear
from kinema.generate.path.path import Path
from kinema.generate.run import Run, RunConfig, SampleSpec, build, path_spec, save_run


def train(
    data: PyTree,
    *,
    key,
    steps: int = 1350,
    labels=None,
    ts=None,
    world: dict[str, Any] | None = None,
    augment: Callable | None = None,
    path: Path | None = None,
    model: str | None = None,
    sizes: dict[str, Any] | None = None,
    predicts: str = "data",
    weight: str | Callable | None = None,
    times: str | Callable | None = None,
    batch_size: int = 128,
    rate: float = 2e-3,
    ema: float = 0.995,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a generator of single samples of `data`: an array `(N, ...)`, or a dict of arrays of one shape.

    `labels (N,)` from 0 make it class-conditional, with the null label for guidance trained on a tenth of the batch.
    `ts` are the frame times of trajectories; `world` their world's name and parameters; `augment(key, sample)` maps
    one sample to one as likely, in physical units. Without `model`, the network is chosen by the sample's shape. The
    loss is that of the velocity, its weight capped at 400, at logit-normal times, unless `weight` and `times` say
    otherwise. With `folder` the run is kept there, and `resume` goes on from its last checkpoint.

    Example:
        >>> run = train(jr.normal(key, (256, 2)), key=key, steps=20, progress=False)
        >>> run.shape
        (2,)

    Raises:
        InputError: data that is empty, does not vary, or has labels or times of another length.
        NotFinite: the loss stopped being a number.
    """
    states = (
        {k: np.asarray(v, np.float32) for k, v in data.items()}
        if isinstance(data, dict)
        else np.asarray(data, np.float32)
    )
    codec = Codec.fit(states, channels=ts is not None)
    rows = len(jax.tree.leaves(states)[0])
    shape = tuple(jax.eval_shape(codec.encode, jax.tree.map(lambda leaf: leaf[0], states)).shape)
    classes, labels = _labels(labels, rows)
    batch = {"x1": states} | ({} if labels is None else {"cond": labels})
    name, chosen = (model, {}) if model else models.suggest(shape)
    spec = models.spec(name, shape=shape, **chosen | (sizes or {}) | ({} if classes is None else {"classes": classes}))
    path = Linear() if path is None else path
    sample = SampleSpec(shape, codec.names, None if ts is None else tuple(map(float, ts)), classes, world)
    record = {"steps": steps, "batch_size": batch_size, "rate": rate, "ema": ema, "rows": rows}
    config = RunConfig(path_spec(path), spec, sample, predicts, training=record)
    key_net, key_fit = jr.split(key)

    def encode(key, one):
        return codec.encode(one if augment is None else augment(key, one))

    objective = Denoising(
        weight=capped("velocity", 400.0) if weight is None else weight,
        times=LogitNormal(0.3, 1.2) if times is None else times,
        augment=encode,
        unconditional=0.0 if classes is None else 0.1,
        null=classes,
    )
    fitted = learn.fit(
        build(config, key=key_net),
        objective,
        batch,
        optimizer=learn.adam(rate, steps),
        steps=steps,
        batch_size=batch_size,
        key=key_fit,
        ema=ema,
        folder=folder,
        resume=resume,
        progress=progress,
    )
    run = Run(fitted.ema, codec, config, fitted.history)
    if folder is not None:
        save_run(folder, run)
    return run


def _labels(labels, rows: int):
    if labels is None:
        return None, None
    labels = np.asarray(labels)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise InputError(f"labels must be {rows} whole numbers, got shape {labels.shape} of {labels.dtype}")
    if labels.min() < 0:
        raise InputError(f"labels must start at 0, got {labels.min()} in row {int(labels.argmin())}")
    return int(labels.max()) + 1, jnp.asarray(labels, jnp.int32)
