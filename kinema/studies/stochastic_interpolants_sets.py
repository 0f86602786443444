"""A ring of eight clusters carried to a checkerboard by a learnt map, with more and less noise."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema import learn, models
from kinema.generate import Generator, Interpolant, Interpolating, sample
from kinema.generate.alike import bind_alike
from kinema.generate.solver import Plan, euler_maruyama, grids, heun
from kinema.report.charts import scatter_rows
from kinema.report.picture import Picture
from kinema.verify import sliced_wasserstein

LEARNT_NOISES = (0.0, 0.1, 0.5, 2.0)
ROWS = 50_000  # of either law; those that judge are the first of as many, so that both compile once


def dynamics(path: Interpolant, steps: int, noise: float) -> Plan:
    """The flow, or dynamics of volatility sqrt(2 noise)."""
    grid = grids.uniform_time(path, steps)
    if noise == 0:
        return heun(path, grid, extrapolates="velocity")
    return euler_maruyama(path, grid, noise_level=lambda t: (2 * noise) ** 0.5)


class Between(NamedTuple):
    """Distances by noise, the floor of a second draw, and clouds to look at."""

    distances: list[float]
    floor: float
    clouds: dict[str, Array]


def eight(key, n: int) -> Float[Array, "n 2"]:
    """Eight normal laws of deviation 0.15 on a circle of radius 2."""
    key_which, key_noise = jr.split(key)
    angle = jr.randint(key_which, (n,), 0, 8) * (jnp.pi / 4)
    return 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) + 0.15 * jr.normal(key_noise, (n, 2))


def checkerboard(key, n: int) -> Float[Array, "n 2"]:
    """Uniform on the black squares of a board of 4 x 4 over [-2, 2]^2."""
    key_square, key_place = jr.split(key)
    square = jr.randint(key_square, (n,), 0, 8)
    row = square // 2
    corner = jnp.stack([2 * (square % 2) + row % 2, row], -1) - 2.0
    return corner + jr.uniform(key_place, (n, 2))


def between_sets(width: int, steps: int, drawn: int, key) -> Between:
    key_data, key_net, key_fit, key_test, key_draw = jr.split(key, 5)
    key_x0, key_x1 = jr.split(key_data)
    path = Interpolant()
    net = models.make("mlp", shape=(2,), width=width, depth=3, outputs=2, key=key_net)
    fitted = learn.fit(
        Generator(path, net, predicts=("transport", "noise")),
        Interpolating(),
        {"x0": eight(key_x0, ROWS), "x1": checkerboard(key_x1, ROWS)},
        steps=steps,
        batch_size=512,
        optimizer=learn.adam(3e-3, steps),
        key=key_fit,
        ema=0.995,
        progress=True,
    ).ema
    key_starts, key_truth, key_other, key_slices = jr.split(key_test, 4)
    x0, truth, other = (
        f(k, ROWS)[:drawn] for f, k in ((eight, key_starts), (checkerboard, key_truth), (checkerboard, key_other))
    )
    flow, *noisy = (dynamics(path, 100, noise) for noise in LEARNT_NOISES)
    alike = bind_alike({f"e = {noise:g}": plan for noise, plan in zip(LEARNT_NOISES[1:], noisy)}, fitted)
    plans = [*bind_alike({"flow": flow}, fitted).values(), *alike.values()]
    clouds = {
        noise: sample(fitted, plan, drawn, key=key_draw, shape=(2,), x0=x0).x
        for noise, plan in zip(LEARNT_NOISES, plans)
    }

    def distance(x) -> float:
        return float(sliced_wasserstein(x, truth, key_slices, projections=64))

    return Between(
        [distance(x) for x in clouds.values()],
        distance(other),
        {"start": x0, "flow": clouds[0.0], "e = 0.5": clouds[0.5], "e = 2": clouds[2.0], "data": truth},
    )


def learnt_picture(made: Between) -> Picture:
    return Picture(
        "learnt",
        scatter_rows({name: np.asarray(x) for name, x in made.clouds.items()}, points=2000),
        "Eight clusters carried to a checkerboard by a learnt map: start, flow, two noises, data",
        "One network with two outputs; the noise is chosen when sampling.",
    )
