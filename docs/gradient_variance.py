"""Draw how noisy the gradient is under every weighting: `python docs/gradient_variance.py`.

A generator is trained for a short while on two moons; then come 2000 batches of 64 for every weighting and every way to
draw their times. The height is E |g - mean g|^2 / |mean g|^2 for the gradient g by all parameters.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import learn, models
from kinema.generate import Denoising, Generator, Linear
from kinema.generate.objective import TIMES, WEIGHTINGS
from kinema.generate.objective.weighting import QUANTILES, draw_times
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.path_core import moons

FILE = Path(__file__).parent / "images" / "gradient-variance.svg"
BATCH, BATCHES, TRAINED = 64, 2000, 25


def trained() -> Generator:
    key_net, key_data, key_fit = jr.split(jr.key(0), 3)
    net = models.make("mlp", shape=(2,), width=32, depth=2, key=key_net)
    return learn.fit(
        Generator(Linear(), net, predicts="residual"),
        Denoising(weight="residual"),
        moons(key_data, 4096),
        steps=TRAINED,
        batch_size=256,
        optimizer=learn.adam(3e-3, TRAINED),
        key=key_fit,
        ema=None,
        progress=False,
    ).model


@eqx.filter_jit
def relative_variance(gen: Generator, objective: Denoising, key):
    params, static = eqx.partition(gen, eqx.is_inexact_array)

    def loss(params, t, key):
        key_data, key_noise = jr.split(key)
        whole, x1 = eqx.combine(params, static), moons(key_data, BATCH)
        one = jax.vmap(lambda k, t, x: objective.one(whole, k, t, {"x1": x}))
        return one(jr.split(key_noise, BATCH), t, x1).mean()

    def gradient(key):
        key_times, key_rest = jr.split(key)
        times = draw_times(TIMES["uniform"], gen.path, key_times, BATCH, objective.quantiles)
        grads = jax.grad(loss)(params, times, key_rest)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    grads = jax.lax.map(gradient, jr.split(key, BATCHES))
    mean = grads.mean(0)
    noise = jnp.sum((grads - mean) ** 2) / (BATCHES - 1)
    return noise / (jnp.sum(mean**2) - noise / BATCHES)  # the mean has a share of the noise too


def main():
    gen = trained()
    found = {
        weight: [float(relative_variance(gen, Denoising(weight, quantiles=how), jr.key(1))) for how in QUANTILES]
        for weight in WEIGHTINGS
    }
    with house(6.2, 3.0) as (figure, axes):
        places = np.arange(len(found))
        for i, name in enumerate(QUANTILES):
            heights = [row[i] for row in found.values()]
            axes.bar(places + 0.27 * (i - 1), heights, 0.25, color=f"C{i}", label=f"{name} times")
        axes.set_xticks(places, list(found))
        axes.set(yscale="log", ylabel="variance of the gradient / |its mean|²")
        axes.legend(fontsize=7)
    alt = "Relative variance of the gradient for six weightings, with independent, antithetic and stratified times"
    FILE.write_bytes(Picture("gradient-variance", figure, alt).encoded().image)
    for weight, row in found.items():
        print(f"{weight:12s}", *(f"{value:9.3g}" for value in row))


if __name__ == "__main__":
    main()
