"""Digits for solvers: as points, whose exact generator is one matrix product, and as a trained perceptron."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema import learn, models
from kinema.errors import require
from kinema.generate import Denoising, Generator, Path
from kinema.generate.generator import AbstractGenerator
from kinema.generate.objective import capped

PIXELS, SPREAD = 64, 0.5
WEIGHT = capped("velocity", 400.0)


def scaled_digits() -> np.ndarray:
    """scikit-learn's digits `(1797, 64)`, mean 0 and deviation `SPREAD` over all pixels."""
    pixels = require("sklearn.datasets", "digits").load_digits().data
    return ((pixels - pixels.mean()) * (SPREAD / pixels.std())).astype(np.float32)


class Blurred(AbstractGenerator):
    """The exact generator of equally likely points, each blurred to N(point, blur^2).

    E[x1 | x] = (a blur^2 x + s^2 sum_k p_k point_k) / spread, with spread = a^2 blur^2 + s^2 and
    log p_k = (a x . point_k - a^2 |point_k|^2 / 2) / spread + constant. It is `MixturePosterior` without a gap of every
    coordinate to every point.
    """

    path: Path
    points: Float[Array, "k d"]
    blur: float
    predicts: str = eqx.field(static=True, default="data")
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x: Float[Array, " d"], cond=None, x0=None) -> Float[Array, " d"]:
        a, _, s = self.path.coefficients(t)
        spread = a**2 * self.blur**2 + s**2
        share = jax.nn.softmax((a * (self.points @ x) - a**2 * (self.points**2).sum(1) / 2) / spread)
        return (a * self.blur**2 * x + s**2 * (share @ self.points)) / spread

    @eqx.filter_jit
    def draws(self, n: int, key) -> Float[Array, "n d"]:
        """n samples of the data law."""
        key_which, key_noise = jr.split(key)
        which = jr.randint(key_which, (n,), 0, len(self.points))
        return self.points[which] + self.blur * jr.normal(key_noise, (n, self.points.shape[1]))


def perceptron(path: Path, predicts: str, training: tuple[int, int, int], pixels, key_net, key_fit) -> Generator:
    """A perceptron of (steps, width, depth) that has learnt the digits."""
    steps, width, depth = training
    net = models.make("mlp", shape=(PIXELS,), width=width, depth=depth, key=key_net)
    return learn.fit(
        Generator(path, net, predicts=predicts, sigma_data=SPREAD),
        Denoising(weight=WEIGHT),
        pixels,
        optimizer=learn.adam(2e-3, steps),
        steps=steps,
        batch_size=256,
        key=key_fit,
        ema=0.995,
        progress=True,
    ).ema
