"""A latent SDE fitted to short, noisy series of a double well; then its own motion, run five times as long.

dx = (x - x³) dt + σ dW,   stationary density ∝ exp(-2 (x⁴/4 - x²/2) / σ²)
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import learn
from kinema.models import LatentSDE
from kinema.motion import FunctionLaw, integrate

SIGMA, SEEN = 0.6, 0.2  # noise of the motion, and of an observation
END, FRAMES = 4.0, 21
LATER = (10.0, 20.0)  # when the model's own motion is compared
GRID = np.linspace(-3.5, 3.5, 7001)


class Bistable(NamedTuple):
    """Kolmogorov-Smirnov distances to the true stationary law, the model's numbers, and its noise in units of x."""

    distance: float
    gaussian: float
    made: np.ndarray
    noise: float


def density() -> np.ndarray:
    """The stationary density on GRID."""
    weight = np.exp(-2 * (GRID**4 / 4 - GRID**2 / 2) / SIGMA**2)
    return weight / (weight.sum() * (GRID[1] - GRID[0]))


def cumulative() -> np.ndarray:
    mass = np.cumsum(density())
    return mass / mass[-1]


def distance(x) -> float:
    """Largest gap between the distribution of the numbers `x` and the stationary law."""
    x = np.sort(np.ravel(x))
    return float(np.abs(np.interp(x, GRID, cumulative()) - (np.arange(len(x)) + 0.5) / len(x)).max())


@jax.jit
def observed(starts, key):
    """Series (n, FRAMES, 1) of the double well, seen with noise."""
    key_motion, key_seen = jr.split(key)
    law: Any = FunctionLaw(lambda t, x, args: x - x**3, lambda t, x, args: jnp.full_like(x, SIGMA))
    how = {"method": "euler_maruyama", "dt": 0.02, "max_steps": 512}

    def one(x0, key):
        return integrate(law, x0, jnp.linspace(0, END, FRAMES), key=key, **how).states

    x = jax.vmap(one)(starts, jr.split(key_motion, len(starts)))
    return x + SEEN * jr.normal(key_seen, x.shape)


@eqx.filter_jit
def made(model: LatentSDE, keys):
    """Numbers of the model's own motion over the later times, (n, times)."""

    def one(key):
        key_start, key_motion = jr.split(key)
        z0 = model.start_mean + jnp.exp(model.start_log) * jr.normal(key_start, (model.latent,))
        ts = jnp.concatenate([jnp.zeros(1), jnp.linspace(*LATER, 11)])
        how = {"method": "euler_maruyama", "dt": 0.05, "key": key_motion, "max_steps": 512}
        return model.readout(integrate(model, z0, ts, **how).states)[1:, 0]

    return jax.vmap(one)(keys)


def bistable(n: int, steps: int, tests: int, key) -> Bistable:
    """Fit, run, compare. The Gaussian has the moments of the true law: the best that a linear model can do."""
    key_start, key_data, key_net, key_fit, key_made = jr.split(key, 5)
    quantiles = np.asarray(jr.uniform(key_start, (n,)))
    starts = jnp.asarray(np.interp(quantiles, cumulative(), GRID), float)[:, None]
    x = observed(starts, key_data)
    rows = {"ts": jnp.tile(jnp.linspace(0, END, FRAMES), (n, 1)), "x": x}
    model = LatentSDE(1, latent=1, width=32, noise=1.0, key=key_net)
    how = {"optimizer": learn.adam(1e-2, steps), "steps": steps, "batch_size": 32, "key": key_fit, "ema": 0.99}
    model = learn.fit(model, learn.LatentLoss(SEEN, substeps=8), rows, **how, progress=False).ema
    numbers = np.asarray(made(model, jr.split(key_made, tests)))
    noise = float(jnp.exp(model.noise_log[0]) * jnp.abs(model.readout.weight[0, 0]))
    return Bistable(distance(numbers), gaussian(), numbers.ravel(), noise)


def gaussian() -> float:
    """Distance of the Gaussian with the true moments, exactly: their cumulative functions compared on GRID."""
    step = GRID[1] - GRID[0]
    variance = (density() * GRID**2).sum() * step
    normal = np.cumsum(np.exp(-0.5 * GRID**2 / variance)) * step / np.sqrt(2 * np.pi * variance)
    return float(np.abs(normal - cumulative()).max())
