"""What momentum is tried on: a guided mixture whose scores are exact, and guided digits of a trained network."""

from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from kinema.generate import VP, Guided, MixturePosterior, Path, sample, train
from kinema.generate.alike import bind_alike
from kinema.generate.generator import AbstractGenerator
from kinema.generate.noise import NoiseLaw, Normal
from kinema.generate.solver import Grid, Plan, grids
from kinema.motion.readers import read
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies import digits

DIM, CLASSES, COMPONENTS, STD = 16, 4, 3, 0.25
NO_CLASS = CLASSES
DIGIT_SCALE, DIGIT_STEPS = 8.0, 8
BETAS = np.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000) ** 2


class ScaledLinear(Path):
    """The table of latent text-to-image models: index k = 999 (1 - t), log a^2 linear between indices."""

    log_squares: Float[Array, " indices"]
    noise: NoiseLaw = Normal()
    origin: str = eqx.field(static=True, default="none")
    t_min: float = eqx.field(static=True, default=0.0)
    t_max: float = eqx.field(static=True, default=1.0)

    @eqx.filter_jit
    def coefficients(self, t) -> tuple[Array, Array, Array]:
        level = jnp.asarray(self.log_squares, jnp.result_type(float))
        level = jnp.interp((1 - jnp.asarray(t)) * (len(level) - 1), jnp.arange(len(level)), level)
        return jnp.exp(0.5 * level), 0 * level, jnp.sqrt(-jnp.expm1(level))


class ClassMixture(AbstractGenerator):
    """The exact generator of the components of one class, or of all where `cond` is `NO_CLASS`."""

    path: Path
    mixture: MixturePosterior
    classes: Int[Array, " k"]
    predicts: str = eqx.field(static=True, default="data")
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x: Float[Array, " d"], cond=None, x0=None) -> Float[Array, " d"]:
        weights = jnp.where((cond == NO_CLASS) | (self.classes == cond), self.mixture.weights, 0.0)
        return eqx.tree_at(lambda mixture: mixture.weights, self.mixture, weights).raw(t, x)


def guided_mixture(n: int, key) -> tuple[ClassMixture, Float[Array, "n d"], Int[Array, " n"]]:
    """The generator, n starts and their classes."""
    key_means, key_start = jr.split(key)
    means = jr.normal(key_means, (CLASSES * COMPONENTS, DIM))
    path = ScaledLinear(jnp.asarray(np.cumsum(np.log1p(-BETAS)), jnp.float32))
    classes = jnp.arange(CLASSES * COMPONENTS) // COMPONENTS
    return (
        ClassMixture(path=path, mixture=MixturePosterior(path, means, STD**2), classes=classes),
        jr.normal(key_start, (n, DIM)),
        jnp.arange(n) % 4,
    )


def uniform_grid(path: Path, steps: int) -> Grid:
    """Whole indices from 999 to 0 at equal distances."""
    return grids.from_times(path, 1 - np.round(np.linspace(999, 0, steps + 1)) / 999)


class Drawn(NamedTuple):
    """Guided digits `(n, 8, 8, 1)` on 0 .. 1 and the share that is recognised."""

    x: np.ndarray
    recognised: float


def guided_digits(
    training: tuple[int, int, int], n: int, solvers: Mapping[str, Callable[[Path, Grid], Plan]], key
) -> dict[str, Drawn]:
    """Digits of every class by a network of (steps, width, depth), each solver from the same starts."""
    steps, width, depth = training
    with TemporaryDirectory() as folder:
        data = read(digits.write_digits(FilePath(folder) / "digits.npz"))
    trained, _ = digits.split(data)
    judge = digits.classifier(trained)
    key_fit, key_draw = jr.split(key)
    path = VP()
    made = train(
        trained.arrays,
        labels=trained.labels,
        key=key_fit,
        steps=steps,
        path=path,
        model="mlp",
        sizes={"width": width, "depth": depth},
        progress=False,
    )
    guided = Guided(made.generator, jnp.asarray(made.config.sample.classes), DIGIT_SCALE)
    labels, grid, found = np.arange(n) % 10, grids.uniform_time(path, DIGIT_STEPS, stop=1 - 1e-3), {}
    plans = {name: build(path, grid) for name, build in solvers.items()}
    for name, rows in bind_alike(plans, guided).items():
        drawn = sample(guided, rows, n, key=key_draw, shape=made.shape, cond=jnp.asarray(labels))
        x = np.asarray(jax.vmap(made.codec.decode)(drawn.x))
        found[name] = Drawn(x, float(judge.score(digits.flat(np.clip(x, 0, 1)), labels)))
    return found


def sheet(drawn: Mapping[str, Drawn]) -> Picture:
    """A row of digits for each solver, 0 to 9; values outside 0 .. 1 in colour."""
    with house(4.8, 0.62 * len(drawn), nrows=len(drawn), squeeze=False) as (figure, grid):
        for axes, (name, one) in zip(grid[:, 0], drawn.items()):
            rows = one.x[:10, ..., 0].transpose(1, 0, 2).reshape(8, -1)
            ink = np.clip(1 - rows, 0, 1)
            over, under = np.clip(rows - 1.5, 0, 1), np.clip(-0.5 - rows, 0, 1)
            axes.imshow(np.stack([ink + over - under, ink - under, ink], -1).clip(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
            axes.set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center")
    return Picture(
        "digits",
        figure,
        f"Digits 0 to 9 by several solvers at guidance {DIGIT_SCALE:g} in {DIGIT_STEPS} steps; PLMS 4 gives noise",
        f"Guidance {DIGIT_SCALE:g}, {DIGIT_STEPS} steps. Red: far above ink; blue: far below paper.",
    )
