"""PFGM++ on 8 x 8 digits: the exact denoiser, a learnt one, and what spoils them."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema import learn, models
from kinema.errors import require
from kinema.generate import Generator, PoissonFlow, bind, edm, sample
from kinema.generate.generator import AbstractGenerator
from kinema.generate.rows import Rows
from kinema.generate.solver import grids, heun
from kinema.models.layers import Linear

PIXELS, SPREAD = 64, 0.5
OBJECTIVE = edm()


def halves(seed: int, n: int) -> tuple[Float[Array, "n 64"], Float[Array, "m 64"]]:
    """n of scikit-learn's digits and at most 900 others, of standard deviation 0.5 about 0."""
    values = require("sklearn.datasets", "digits").load_digits().data
    values = SPREAD * (values - values.mean()) / values.std()
    order = np.random.default_rng(seed).permutation(len(values))
    values = jnp.asarray(values[order], jnp.float32)
    return values[:n], values[n : n + 900]


class ExactDenoiser(AbstractGenerator):
    """E[x1 | x] where the data are equally likely `points`, under the kernel of PFGM++.

    What `MixturePosterior` of point masses predicts, with distances as products of matrices: many times faster for
    hundreds of points, and no score.
    """

    path: PoissonFlow
    points: Float[Array, "k d"]
    predicts: str = eqx.field(static=True, default="data")
    sigma_data: float = eqx.field(static=True, default=SPREAD)

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x: Float[Array, " d"], cond=None, x0=None) -> Float[Array, " d"]:
        D, s = self.path.D, self.path.coefficients(t)[2]
        gap = jnp.dot(x, x) - 2 * self.points @ x + jnp.sum(self.points**2, -1)
        square = jnp.maximum(gap, 0) / s**2
        log_weight = -0.5 * square if np.isinf(D) else -0.5 * (D + x.size) * jnp.log1p(square / D)
        return jax.nn.softmax(log_weight) @ self.points


def disturbed(rows: Rows, amount: float) -> Rows:
    """Rows that put `amount` times sigma of normal noise on the state before every step.

    As a plan, `bind` refuses this on a Student-t path, because the noise does not keep the law: here it is to disturb.
    """
    starts = np.r_[True, np.asarray(rows.whole)[:-1]]
    return replace(rows, n=amount * rows.s_before * starts, uses=rows.uses | {"n"})


def draw(gen: AbstractGenerator, steps: int, amount: float, n: int, key) -> Float[Array, "n 64"]:
    """n digits by Heun's method on the published grid, under a disturbance."""
    rows = bind(heun(gen.path, grids.karras(gen.path, steps)), gen)
    return sample(gen, disturbed(rows, amount), n, key=key, shape=(PIXELS,)).x


def fit(D: float, points: Float[Array, "n 64"], sizes: tuple[int, int], steps: int, key) -> Generator:
    """A perceptron (width, depth) trained as EDM at the noise of D; the same key gives every D the same weights and
    batches."""
    width, depth = sizes
    key_net, key_fit = jr.split(key)
    net = models.make("mlp", shape=(PIXELS,), width=width, depth=depth, key=key_net)
    return learn.fit(
        Generator(PoissonFlow(D=D), net, predicts="residual", sigma_data=SPREAD),
        OBJECTIVE,
        points,
        optimizer=learn.adam(3e-3, steps),
        steps=steps,
        batch_size=64,
        key=key_fit,
        ema=0.995,
        progress=True,
    ).ema


def rounded(gen: Generator, bits: int) -> Generator:
    """Every weight matrix rounded to 2^bits - 1 equally spaced values, the largest entry among them; biases stay."""
    highest = 2 ** (bits - 1) - 1

    def coarse(layer):
        if not isinstance(layer, Linear):
            return layer
        unit = jnp.abs(layer.weight).max() / highest
        return eqx.tree_at(lambda one: one.weight, layer, unit * jnp.round(layer.weight / unit))

    return jax.tree.map(coarse, gen, is_leaf=lambda node: isinstance(node, Linear))


@eqx.filter_jit
def rounding_error(gen: Generator, coarse: Generator, x1: Float[Array, "n 64"], sigma: float, key) -> Float[Array, ""]:
    """Root mean square of what rounding changes in the data prediction at noise level sigma, over sigma."""
    t = gen.path.time_of_log_snr(-jnp.log(sigma))

    def one(key, x1):
        x = gen.path.perturb(key, t, x1).x
        return jnp.mean((gen(t, x).data - coarse(t, x).data) ** 2)

    return jnp.sqrt(jax.vmap(one)(jr.split(key, len(x1)), x1).mean()) / sigma
