"""PFGM++: noise for a batch beside the published draw in NumPy, and Heun sampling beside k-diffusion at D = inf.

The published draw, of Xu et al. 2023: a direction from normal numbers, and a radius r sqrt(b / (1 - b)) with b from
Beta(N / 2, D / 2). Both draw their own noise; the median of |z|^2 / N of each is compared with that of F(N, D).
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import torch
from scipy import stats

from benchmarks.harness import Row, compare
from benchmarks.networks import Denoiser, in_jax, in_torch, weights
from benchmarks.peer_references import k_diffusion_sampling
from kinema import generate
from kinema.generate import solver
from kinema.generate.noise import StudentT
from kinema.generate.solver import grids

DRAWS = ((64, 64.0, 256), (3072, 2048.0, 256))  # N, D, samples
SAMPLED = ((2, 64, 256), (64, 256, 256))  # N, width, samples
STEPS = 18


def run(seconds: float = 3.0) -> list[Row]:
    K = k_diffusion_sampling()
    return [draw(*case, seconds) for case in DRAWS] + [heun(K, *case, seconds) for case in SAMPLED]


def draw(size: int, df: float, count: int, seconds: float) -> Row:
    law, like, random = StudentT(df), jax.ShapeDtypeStruct((size,), jnp.float32), np.random.RandomState(0)

    @jax.jit
    def batch(key):
        return jax.vmap(lambda one: law.sample(one, like))(jr.split(key, count))

    def ours():
        return np.asarray(batch(jr.key(0)))

    def theirs():
        return beta_draw(random, size, df, count)

    for z in (ours(), theirs()):
        same_radii(z, df)
    case = f"noise {size} wide, D = {df:g}, x {count}"
    return compare(case, "NumPy", ours, theirs, target=3, seconds=seconds, tolerance=None)


def beta_draw(random: np.random.RandomState, size: int, df: float, count: int) -> np.ndarray:
    """Noise at sigma = 1 in float32, `(count, size)`."""
    share = np.clip(random.beta(size / 2, df / 2, count), 1e-3, 1 - 1e-3)
    radius = df**0.5 * np.sqrt(share / (1 - share))
    direction = random.randn(count, size)
    direction *= (radius / np.linalg.norm(direction, axis=1))[:, None]
    return direction.astype(np.float32)


def same_radii(z: np.ndarray, df: float):
    """The share of |z|^2 / N below the median of F(N, D) is a half, to 4 standard errors."""
    count, size = z.shape
    below = (np.square(z, dtype=np.float64).mean(1) < stats.f(size, df).median()).mean()
    if abs(below - 0.5) > 4 * 0.5 / count**0.5:
        raise AssertionError(f"radii are not those of F({size}, {df:g}): {below:.3f} lie below its median")


def heun(K, size: int, width: int, count: int, seconds: float) -> Row:
    path = generate.PoissonFlow(D=np.inf)
    numbers = weights((size + 1, width, width, size))
    gen = generate.Generator(path, in_jax(Denoiser, numbers), predicts="residual", sigma_data=0.5)
    grid = grids.karras(path, STEPS)
    rows = generate.bind(solver.heun(path, grid), gen)
    start = path.sigma_max * np.random.default_rng(1).normal(size=(count, size)).astype(np.float32)
    x = jnp.asarray(start)
    compiled = jax.jit(lambda x: generate.sample(gen, rows, count, key=jr.key(0), shape=(size,), start=x).x)
    net, start, sigmas = in_torch(numbers, torch.nn.SiLU), torch.tensor(start), torch.tensor(grid.noise_ratio).float()

    def model(x, sigma):
        sigma = sigma[:, None]
        variance = sigma**2 + 0.25
        out = net(torch.cat([x * variance.rsqrt(), -0.1 * sigma.log()], 1))
        return 0.25 / variance * x + 0.5 * sigma * variance.rsqrt() * out

    @torch.inference_mode()
    def theirs():
        return K.sample_heun(model, start, sigmas, disable=True).numpy()

    case = f"Heun {size} wide {width} x {count}"
    return compare(case, "k-diffusion", lambda: np.asarray(compiled(x)), theirs, target=1, seconds=seconds)
