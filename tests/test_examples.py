"""The examples in docstrings run and say the truth; those of motion, models, simulate and report have tests there."""

import doctest
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema import generate, models
from kinema.generate import MixturePosterior, estimate_statistics, solver
from kinema.generate.path import VP, Linear
from kinema.generate.solver import grids

ROOT = Path(__file__).parent.parent
# these need a trained run or a world, and their pages of the documentation run the same
TOLD_ON_PAGES = {
    "generate/training",
    "generate/objective/latent_likelihood",
    "steer/conditioning",
    "steer/restoration",
    "steer/rounds",
    "verify/laws",
}
MODULES = sorted(
    str(file.relative_to(ROOT / "kinema").with_suffix(""))
    for stage in ("generate", "learn", "verify", "steer")
    for file in (ROOT / "kinema" / stage).rglob("*.py")
    if ">>>" in file.read_text()
)


@pytest.fixture(scope="module")
def scene():
    """What an example may take for granted: a path, a grid, a plan, an exact generator and its data."""
    path = VP()
    points = jr.normal(jr.key(0), (64, 2))
    grid = grids.karras(path, 8, high=3.0)
    return {
        **{"jax": jax, "jnp": jnp, "jr": jr, "np": np, "models": models, "solver": solver, "grids": grids},
        **{name: getattr(generate, name) for name in ("Generator", "log_prob", "solve_adaptive", "sample")},
        **{"Linear": Linear, "estimate_statistics": estimate_statistics, "key": jr.key(1), "shape": (2,)},
        **{"path": path, "grid": grid, "plan": solver.dpmpp(path, grid), "gen": MixturePosterior(path, points, 0.1)},
        **{"data": points, "x": points[0], "starts": points[:3], "statistics": None},
    }


@pytest.mark.parametrize("name", [name for name in MODULES if name not in TOLD_ON_PAGES])
def test_examples(name, scene):
    module = importlib.import_module("kinema." + name.replace("/", "."))
    result = doctest.testmod(module, extraglobs={k: v for k, v in scene.items() if not hasattr(module, k)})
    assert result.attempted and not result.failed


def test_what_is_left_out_exists():
    assert set(MODULES) >= TOLD_ON_PAGES
