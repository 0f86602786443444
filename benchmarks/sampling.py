"""The sampling loop beside diffusers and k-diffusion: DPM-Solver++ 2M, 20 steps, the same weights, grid and start.

What is made once for many samples is not timed on any side: the plan and its compilation here, `set_timesteps` there.
"""

import copy

import diffusers
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import torch

from benchmarks.harness import Row, compare
from benchmarks.networks import Denoiser, in_jax, in_torch, weights
from benchmarks.peer_references import k_diffusion_sampling
from kinema import generate
from kinema.generate import solver
from kinema.generate.solver import grids

STEPS, TABLE = 20, 1000
# (numbers in a sample, width, samples): faster than (diffusers, k-diffusion) by
CASES = {(2, 64, 1): (50, 50), (2, 64, 256): (3, 3), (64, 256, 256): (0.95, 0.95), (3072, 64, 16): (3, 3)}


def run(seconds: float = 3.0) -> list[Row]:
    rows, K = [], k_diffusion_sampling()
    path = generate.VP()
    times = jnp.asarray(1 - (np.arange(TABLE) + 1) / TABLE)
    with jax.enable_x64(True):
        squares = np.asarray(path.coefficients(times.astype(float))[0], np.float64) ** 2
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=1 - squares / np.r_[1.0, squares[:-1]], num_train_timesteps=TABLE, lower_order_final=False
    )
    grid = grids.discrete(squares, STEPS)
    for (dim, width, count), targets in CASES.items():
        numbers = weights((dim + 1, width, width, dim))
        gen = generate.Generator(path, in_jax(Denoiser, numbers), predicts="noise")
        rows_of_plan = generate.bind(solver.dpmpp(path, grid), gen)
        net, start = in_torch(numbers, torch.nn.SiLU), np.random.default_rng(1).normal(size=(count, dim))
        start_jax, start_torch = jnp.asarray(start, jnp.float32), torch.tensor(start, dtype=torch.float32)

        def call(x, gen=gen, plan=rows_of_plan, count=count, dim=dim):
            return generate.sample(gen, plan, count, key=jr.key(0), shape=(dim,), start=x).x

        compiled = jax.jit(call)

        def ours(compiled=compiled, x=start_jax):
            return np.asarray(compiled(x))

        sides = {
            "diffusers": in_diffusers(scheduler, net, start_torch),
            "k-diffusion": in_k_diffusion(K, net, start_torch, grid),
        }
        for (peer, theirs), target in zip(sides.items(), targets):
            case = f"sample {dim} wide {width} x {count}"
            rows.append(compare(case, peer, ours, theirs, target=target, seconds=seconds))
            if count == 1:
                case = f"{case}, not in a jit"
                eager = lambda call=call, x=start_jax: np.asarray(call(x))  # noqa: E731
                rows.append(compare(case, peer, eager, theirs, target=1, seconds=seconds))
    return rows


def in_diffusers(scheduler, net, start: torch.Tensor):
    squares = scheduler.alphas_cumprod.double()
    signal = (0.5 * (squares.log() - (1 - squares).log())).float()
    scheduler.set_timesteps(STEPS)
    fresh = copy.copy(scheduler)

    @torch.inference_mode()
    def run():
        scheduler, x = copy.copy(fresh), start
        scheduler.model_outputs = [None, None]
        for t in scheduler.timesteps:
            level = (0.1 * signal[t]).expand(len(x), 1)
            x = scheduler.step(net(torch.cat([x, level], 1)), t, x).prev_sample
        return x.numpy()

    return run


def in_k_diffusion(K, net, start: torch.Tensor, grid):
    sigmas = torch.tensor(grid.noise_ratio, dtype=torch.float32)

    def model(x, sigma):
        sigma = sigma[:, None]
        scaled = x * torch.rsqrt(sigma**2 + 1)
        return x - sigma * net(torch.cat([scaled, -0.1 * sigma.log()], 1))

    @torch.inference_mode()
    def run():
        return K.sample_dpmpp_2m(model, start / grid.a[0], sigmas, disable=True).numpy()

    return run
