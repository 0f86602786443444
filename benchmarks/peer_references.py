"""What other libraries' samplers return on a small exact problem, frozen for the tests.

    python benchmarks/peer_references.py

needs torch, diffusers 0.42.1 and k-diffusion 0.1.1.post1 and writes tests/generate/peers/*.json: options, start, noise
and result of every case, so that `tests/generate/test_peers.py` compares without them. The problem is a two-component
Gaussian mixture in the plane whose posterior mean is known.
"""

import contextlib
import functools
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent.parent / "tests" / "generate" / "peers"
MIXTURE = {"weights": [0.4, 0.6], "means": [[-1.0, 0.5], [1.0, -0.5]], "variances": [0.1, 0.2]}
TABLE = 200


def data_prediction(x: torch.Tensor, a: float, s: float) -> torch.Tensor:
    """E[x1 | a x1 + s z = x] in float64."""
    weights, means, variances = (torch.tensor(MIXTURE[name], dtype=torch.float64) for name in MIXTURE)
    x = x.to(torch.float64)
    gap = x[:, None] - a * means
    spread = a**2 * variances + s**2
    share = torch.softmax(weights.log() - (gap**2).sum(-1) / (2 * spread) - spread.log(), -1)
    return torch.einsum("nk,nkd->nd", share, means + (a * variances / spread)[:, None] * gap)


@functools.cache
def k_diffusion_sampling():
    """The sampling module alone: the package imports evaluation tools that are not needed here."""
    package = importlib.util.find_spec("k_diffusion")
    stub = types.ModuleType("k_diffusion")
    stub.__path__ = list(package.submodule_search_locations)
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    stub.utils = utils
    sys.modules |= {"k_diffusion": stub, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


@contextlib.contextmanager
def given_noise(noises: np.ndarray):
    """`torch.randn_like` returns the given arrays, one a call."""
    supply, real = iter(noises), torch.randn_like
    torch.randn_like = lambda x, **kw: torch.tensor(next(supply), dtype=x.dtype)
    yield lambda *sigmas: torch.tensor(next(supply), dtype=torch.float64)
    torch.randn_like = real


def from_k_diffusion() -> dict:
    K = k_diffusion_sampling()
    steps = 12
    sigmas = torch.cat(
        [torch.linspace(10 ** (1 / 7), 0.05 ** (1 / 7), steps, dtype=torch.float64) ** 7, torch.zeros(1)]
    )
    random = np.random.default_rng(0)
    start = np.round(10 * random.normal(size=(3, 2)), 6)
    noises = np.round(random.normal(size=(steps, 3, 2)), 6)

    def model(x, sigma, **_):
        return data_prediction(x, 1.0, float(sigma[0]))

    churn = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.01}
    cases = [
        ("euler", "sample_euler", {}),
        ("heun", "sample_heun", {}),
        ("churn", "sample_heun", churn),
        ("lms", "sample_lms", {"order": 4}),
        ("ancestral", "sample_euler_ancestral", {"eta": 1.0}),
        ("ancestral-half", "sample_euler_ancestral", {"eta": 0.5}),
        ("dpmpp-2m", "sample_dpmpp_2m", {}),
        ("sde-2m-midpoint", "sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "midpoint"}),
        ("sde-2m-heun", "sample_dpmpp_2m_sde", {"eta": 0.6, "solver_type": "heun"}),
        ("sde-3m", "sample_dpmpp_3m_sde", {"eta": 1.0}),
    ]
    results = {}
    for name, function, options in cases:
        with given_noise(noises) as sampler:
            given = {"noise_sampler": sampler} if "eta" in options else {}
            x = getattr(K, function)(model, torch.tensor(start), sigmas, disable=True, **options, **given)
        results[name] = x.tolist()
    problem = {"mixture": MIXTURE, "ratios": sigmas.tolist(), "start": start.tolist(), "noise": noises.tolist()}
    return problem | {"results": results}


def from_diffusers() -> dict:
    import diffusers

    u = (np.arange(TABLE) + 1) / TABLE
    squares = np.exp(-(0.1 * u + 19.9 * u**2 / 2))
    betas = 1 - squares / np.r_[1.0, squares[:-1]]
    random = np.random.default_rng(1)
    start = np.round(random.normal(size=(3, 2)), 6)
    noises = np.round(random.normal(size=(20, 3, 2)), 6)
    common = {"trained_betas": betas, "num_train_timesteps": TABLE}
    multistep = {"final_sigmas_type": "zero", "lower_order_final": False, "timestep_spacing": "linspace"}
    cases = {}
    for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
        cases[f"dpmpp-{order}-{kind}"] = (
            "DPMSolverMultistepScheduler",
            {"solver_order": order, "solver_type": kind, "algorithm_type": "dpmsolver++"} | multistep,
        )
    cases["dpmpp-3-sigma-min"] = (
        "DPMSolverMultistepScheduler",
        {"solver_order": 3, "algorithm_type": "dpmsolver++", "timestep_spacing": "leading", "steps_offset": 1}
        | {"final_sigmas_type": "sigma_min", "lower_order_final": True},
    )
    cases["sde-2-midpoint"] = (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"} | multistep,
    )
    for order, kind in ((2, "bh1"), (2, "bh2"), (3, "bh1"), (3, "bh2")):
        # onto sigma = 0 the peer's bh1 multiplies infinity by zero
        end = "sigma_min" if kind == "bh1" else "zero"
        cases[f"unipc-{order}-{kind}"] = (
            "UniPCMultistepScheduler",
            {"solver_order": order, "solver_type": kind, "final_sigmas_type": end, "timestep_spacing": "trailing"},
        )
    for order in (1, 2, 3):
        cases[f"deis-{order}"] = (
            "DEISMultistepScheduler",
            {"solver_order": order, "lower_order_final": True, "timestep_spacing": "linspace"},
        )
    for eta in (0.0, 0.5, 1.0):
        cases[f"ddim-{eta}"] = ("DDIMScheduler", {"timestep_spacing": "leading", "clip_sample": False})
    results, table = {}, None
    for name, (kind, options) in cases.items():
        scheduler = getattr(diffusers, kind)(**common, **options)
        table = scheduler.alphas_cumprod
        scheduler.set_timesteps(10)
        dtype = torch.float32 if kind.startswith("UniPC") else torch.float64  # UniPC's linear solve mixes dtypes
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = scheduler.sigmas.to(dtype)
        x, supply = torch.tensor(start, dtype=dtype), iter(noises)
        for t in scheduler.timesteps:
            square = float(table[int(t)])
            a, s = square**0.5, (1 - square) ** 0.5
            noise = ((x.to(torch.float64) - a * data_prediction(x, a, s)) / s).to(dtype)
            extra = {}
            if name.startswith("ddim"):
                extra = {"eta": float(name[5:]), "variance_noise": torch.tensor(next(supply), dtype=dtype)}
            elif name.startswith("sde"):
                extra = {"variance_noise": torch.tensor(next(supply), dtype=dtype)}
            x = scheduler.step(noise, t, x, **extra).prev_sample
        results[name] = {"timesteps": [int(t) for t in scheduler.timesteps], "x": x.to(torch.float64).tolist()}
    problem = {"mixture": MIXTURE, "alphas_cumprod": [float(f"{v:.9g}") for v in table.tolist()]}
    return problem | {"start": start.tolist(), "noise": noises.tolist(), "results": results}


if __name__ == "__main__":
    for name, make in (("k_diffusion", from_k_diffusion), ("diffusers", from_diffusers)):
        (FOLDER / f"{name}.json").write_text(json.dumps(make()) + "\n")
