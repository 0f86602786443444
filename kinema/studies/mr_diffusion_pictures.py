"""Restoration of photographs: patches that were made noisy, lost a square or were blurred, and one learnt generator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from kinema import learn, models
from kinema.errors import require
from kinema.generate import Denoising, Generator, MeanReverting, sample
from kinema.generate.rows import Rows
from kinema.report.charts import house
from kinema.studies.mr_diffusion_exact import FLOWS, NOISY
from kinema.studies.plans_by_calls import bind_by_calls
from kinema.verify import energy_distance

TASKS = ("denoise", "inpaint", "deblur")
NOISE, LOST, BLUR = 0.15, 1 / 3, 2.0  # grey levels; side of the square over that of the patch; pixels
TRAINED = 0.75  # of every photograph, from the left; the rest judges


class Patches(NamedTuple):
    """Clean patches, what is left of them, and which of `TASKS` was done to them."""

    clean: Float[np.ndarray, "n side side 1"]
    degraded: Float[np.ndarray, "n side side 1"]
    task: Int[np.ndarray, " n"]


class Quality(NamedTuple):
    """Peak signal-to-noise ratio, dB, and energy distance to other clean patches over the square root of pixels."""

    psnr: float
    distance: float


def photographs() -> list[Float[np.ndarray, "height width"]]:
    """scikit-learn's two photographs, grey on [-1/2, 1/2], at half their size."""
    images = require("sklearn.datasets", "digits").load_sample_images().images
    grey = [image[:426].mean(-1) / 255 - 0.5 for image in images]
    return [image.reshape(213, 2, 320, 2).mean((1, 3)) for image in grey]


def patches(n: int, side: int, rng: np.random.Generator, *, held_out: bool) -> Patches:
    """n patches from anywhere in the left part of the photographs, or the right one, a third of them for each task."""
    images, clean = photographs(), []
    for i in range(n):
        image = images[i % len(images)]
        border = int(TRAINED * image.shape[1])
        region = image[:, border:] if held_out else image[:, :border]
        row, column = (rng.integers(size - side + 1) for size in region.shape)
        patch = region[row : row + side, column : column + side]
        clean.append(patch[:, ::-1] if rng.random() < 0.5 else patch)
    whole = np.stack(clean)[..., None].astype(np.float32)
    task = rng.permutation(np.arange(n) % len(TASKS)).astype(np.int32)
    return Patches(whole, degrade(whole, task, rng), task)


def degrade(clean: np.ndarray, task: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of deviation 0.15; a square set to middle grey; a Gaussian blur."""
    side = clean.shape[1]
    noisy = clean + NOISE * rng.standard_normal(clean.shape)
    hole = round(LOST * side)
    corner = rng.integers(side - hole + 1, size=(2, len(clean), 1))
    inside = [(corner[axis] <= np.arange(side)) & (np.arange(side) < corner[axis] + hole) for axis in (0, 1)]
    holed = np.where(inside[0][:, :, None, None] & inside[1][:, None, :, None], 0.0, clean)
    gaps = np.arange(side)[:, None] - np.arange(side)
    kernel = np.exp(-0.5 * (gaps / BLUR) ** 2)
    kernel /= kernel.sum(1, keepdims=True)
    blurred = np.einsum("ij,kl,njlc->nikc", kernel, kernel, clean)
    return np.select([task[:, None, None, None] == i for i in range(len(TASKS))], [noisy, holed, blurred]).astype("f4")


class Correcting(eqx.Module):
    """A data prediction that begins at the degraded patch: `net` says what to add, in units of `spread`."""

    net: Callable
    spread: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "side side 2"], signal, cond=None) -> Float[Array, "side side 1"]:
        return self.spread * (x[..., 1:] + self.net(x, signal, cond))


LOSS = Denoising(weight="data")


def fit(trained: Patches, network: Mapping[str, Any], steps: int, key) -> Generator:
    """One generator for all tasks; it is told which."""
    key_net, key_fit = jr.split(key)
    spread = float(trained.clean.std())
    net = models.make(**network, shape=trained.clean.shape[1:], joined=2, classes=len(TASKS), key=key_net)
    return learn.fit(
        Generator(MeanReverting(), Correcting(net, spread), sigma_data=spread),
        LOSS,
        {"x1": trained.clean, "x0": trained.degraded, "cond": trained.task},
        optimizer=learn.adam(1e-3, steps),
        steps=steps,
        batch_size=256,
        key=key_fit,
        ema=0.995,
        progress=True,
    ).ema


def solvers(gen: Generator, counts: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], Rows]:
    """What is compared, by name and calls; those of as many calls share a program."""
    path, found = gen.path, {}
    for n in sorted({n for calls in counts.values() for n in calls}):
        plans = {(name, n): (FLOWS | NOISY)[name](path, n) for name, calls in counts.items() if n in calls}
        found |= bind_by_calls(plans, gen)
    return found


def restore(gen: Generator, rows: Rows, seen: Patches, key) -> Float[np.ndarray, "n side side 1"]:
    x0, cond = jnp.asarray(seen.degraded), jnp.asarray(seen.task)
    return np.asarray(sample(gen, rows, len(x0), key=key, shape=x0.shape[1:], x0=x0, cond=cond, batch_size=1500).x)


def qualities(restored: np.ndarray, seen: Patches, others: np.ndarray) -> dict[str, Quality]:
    """By task. `others` are clean patches that none of the restored ones came from."""
    found = {}
    for i, name in enumerate(TASKS):
        mine = np.flatnonzero(seen.task == i)
        error = np.mean((restored[mine] - seen.clean[mine]) ** 2)
        apart = energy_distance(jnp.asarray(restored[mine]), jnp.asarray(others)) / others[0].size ** 0.5
        found[name] = Quality(float(-10 * np.log10(error)), float(apart))
    return found


def sheet(rows: dict[str, np.ndarray], seen: Patches, each: int = 5):
    """Named rows of the first patches of every task."""
    columns = np.concatenate([np.flatnonzero(seen.task == i)[:each] for i in range(len(TASKS))])
    with house(6.4, 0.46 * len(rows) + 0.3, nrows=len(rows), squeeze=False) as (figure, grid):
        for axes, (name, values) in zip(grid[:, 0], rows.items()):
            apart = np.pad(np.asarray(values)[columns, ..., 0], ((0, 0), (0, 0), (0, 1)), constant_values=0.5)
            axes.imshow(np.concatenate(list(apart), 1), cmap="gray", vmin=-0.5, vmax=0.5, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
        side = seen.clean.shape[1] + 1
        for i, task in enumerate(TASKS):
            grid[0, 0].text((i + 0.5) * each * side, -2, task, ha="center", va="bottom")
    return figure
