"""Equality with diffusers 0.42.1 and k-diffusion 0.1.1.post1, from results frozen by benchmarks/peer_references.py."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from plain_loop import mixture_data, run

from kinema.generate import solver
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.path import VE
from kinema.generate.sampling import sample
from kinema.generate.solver import grids

PEERS = {
    name: json.loads((Path(__file__).parent / "peers" / f"{name}.json").read_text())
    for name in ("k_diffusion", "diffusers")
}
PATH = VE(0.01, 50.0)

K_DIFFUSION = {
    "euler": lambda g: solver.euler(PATH, g),
    "heun": lambda g: solver.heun(PATH, g),
    "churn": lambda g: solver.churn(PATH, g, amount=3.0, low=0.1, high=5.0, noise=1.01),
    "lms": lambda g: solver.adams(PATH, g, order=4),
    "ancestral": lambda g: solver.ancestral(PATH, g),
    "ancestral-half": lambda g: solver.ancestral(PATH, g, eta=0.5),
    "dpmpp-2m": lambda g: solver.dpmpp(PATH, g),
    "sde-2m-midpoint": lambda g: solver.dpmpp(PATH, g, eta=1.0),
    "sde-2m-heun": lambda g: solver.dpmpp(PATH, g, eta=0.6, variant="heun"),
    "sde-3m": lambda g: solver.dpmpp(PATH, g, order=3, eta=1.0, variant="heun", exact=False),
}
DIFFUSERS = {
    "dpmpp-2-midpoint": lambda g: solver.dpmpp(None, g),
    "dpmpp-2-heun": lambda g: solver.dpmpp(None, g, variant="heun"),
    "dpmpp-3-midpoint": lambda g: solver.dpmpp(None, g, order=3, exact=False),
    "dpmpp-3-sigma-min": lambda g: solver.dpmpp(None, g, order=3, exact=False, lower_final=True),
    "sde-2-midpoint": lambda g: solver.dpmpp(None, g, eta=1.0),
    "unipc-2-bh1": lambda g: solver.unipc(None, g, order=2, variant="bh1"),
    "unipc-2-bh2": lambda g: solver.unipc(None, g, order=2),
    "unipc-3-bh1": lambda g: solver.unipc(None, g, order=3, variant="bh1"),
    "unipc-3-bh2": lambda g: solver.unipc(None, g, order=3),
    "deis-1": lambda g: solver.deis(None, g, order=1),
    "deis-2": lambda g: solver.deis(None, g, order=2, lower_final=True),
    "deis-3": lambda g: solver.deis(None, g, order=3, lower_final=True),
    "ddim-0.0": lambda g: solver.ancestral(None, g, eta=0.0),
    "ddim-0.5": lambda g: solver.ancestral(None, g, eta=0.5),
    "ddim-1.0": lambda g: solver.ancestral(None, g, eta=1.0),
}


def mixture_field(plan, mixture):
    """The exact field a plan extrapolates, with the coefficients of its own grid."""

    def field(t, x):
        grid = plan.grid
        if (grid.times == t).any():
            i = int(np.argmax(grid.times == t))
            a, s = grid.a[i], grid.s[i]
        else:
            a, _, s = (float(c) for c in PATH.coefficients(jnp.asarray(t)))
        data = mixture_data(mixture, a, s, x)
        return data if plan.extrapolates == "data" else (x - a * data) / s

    return field


def difference(x, reference):
    reference = np.asarray(reference)
    return np.abs(x - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize("name", K_DIFFUSION)
def test_equals_k_diffusion(name, x64):
    peer = PEERS["k_diffusion"]
    plan = K_DIFFUSION[name](grids.from_noise_ratios(PATH, peer["ratios"]))
    noise = np.array(peer["noise"])
    if name == "churn":  # the peer draws in steps without churn too
        noise = noise[[0.1 <= ratio <= 5 for ratio in peer["ratios"][:-1]]]
    x = run(plan, mixture_field(plan, peer["mixture"]), np.array(peer["start"]), noise)
    assert difference(x, peer["results"][name]) < 1e-12


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "dpmpp-2m"])
def test_compiled_loop_equals_k_diffusion(name, x64, key):
    peer = PEERS["k_diffusion"]
    mixture = peer["mixture"]
    gen = MixturePosterior(PATH, mixture["means"], jnp.array(mixture["variances"]), mixture["weights"])
    plan = K_DIFFUSION[name](grids.from_noise_ratios(PATH, peer["ratios"]))
    x = sample(gen, plan, 3, key=key, shape=(2,), start=jnp.array(peer["start"])).x
    assert difference(x, peer["results"][name]) < 1e-12


def diffusers_grid(name, peer):
    table = peer["alphas_cumprod"]
    if name.startswith("ddim"):
        return grids.discrete(table, timesteps=peer["results"][name]["timesteps"])
    if name.startswith("unipc"):
        return grids.discrete(table, 10, spacing="trailing", clean=name.endswith("bh2"))
    if name == "dpmpp-3-sigma-min":
        return grids.discrete(table, 10, spacing="leading", offset=1, clean=False)
    return grids.discrete(table, 10, clean=not name.startswith("deis"))


@pytest.mark.parametrize("name", DIFFUSERS)
def test_equals_diffusers(name):
    peer = PEERS["diffusers"]
    plan = DIFFUSERS[name](diffusers_grid(name, peer))
    evaluated = np.round(200 * (1 - plan.t) - 1).astype(int)
    assert evaluated.tolist() == peer["results"][name]["timesteps"]
    x = run(plan, mixture_field(plan, peer["mixture"]), np.array(peer["start"]), np.array(peer["noise"]))
    assert difference(x, peer["results"][name]["x"]) < 1e-6
