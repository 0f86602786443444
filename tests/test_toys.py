"""A method gets in by one file and one line: a path, a solver and a world do, and the page about it carries them."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_within_error
from toys import toy_path, toy_solver, toy_world
from toys.toy_path import Ease
from toys.toy_solver import midpoint
from toys.toy_world import spring

from kinema import simulate, verify
from kinema.errors import InputError
from kinema.generate import PATHS, MixturePosterior, sample, solver
from kinema.generate.run import path_spec
from kinema.generate.solver.registry import SOLVERS, Named
from kinema.simulate.world import _WORLDS
from kinema.studies.path_core import continuity

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "add-a-method.md").read_text()


@pytest.fixture(autouse=True)
def registries_as_before():
    before = [(registry, dict(registry)) for registry in (PATHS, SOLVERS, _WORLDS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def test_a_path(key):
    PATHS["ease"] = Ease
    path = PATHS["ease"]()
    assert path_spec(path)["name"] == "ease"  # so run folders hold it
    assert max(continuity(path, 64, seeds=(0,))) <= 1e-12
    means, cov, n = np.array([[-1.0], [1.0]]), 0.05, 2000
    gen = MixturePosterior(path, means, cov)
    x = sample(gen, solver.make("dpmpp-2m", path, 40), n, key=key, shape=(1,)).x[:, 0]
    variance = means.var() + cov
    assert_within_error(x.mean(), 0.0, standard_error=(variance / n) ** 0.5)
    assert_within_error(jnp.abs(x).mean(), 1.0, standard_error=(cov / n) ** 0.5)
    assert_within_error((jnp.abs(x) - 1).std(), cov**0.5, standard_error=(cov / (2 * n)) ** 0.5)


def test_a_path_on_another_clock_is_the_same_road(x64):
    """Ease is the straight line at another time, so plans on the same log-SNR levels are the same."""
    levels, plans = np.linspace(-5, 5, 9), []
    for path in (Ease(), PATHS["linear"]()):
        times = np.asarray(jax.vmap(path.time_of_log_snr)(jnp.asarray(levels)))
        plans.append(solver.dpmpp(path, solver.grids.from_times(path, times)))
    np.testing.assert_allclose(plans[0].M, plans[1].M, rtol=1e-9, atol=1e-12)
    assert np.abs(plans[0].t - plans[1].t).max() > 0.05


def test_a_solver(x64, key):
    """On N(0, variance) the flow is x(t) = x(0) sqrt(v(t) / v(0)), v = a^2 variance + s^2; the error falls as h^2."""
    SOLVERS["midpoint"] = Named(midpoint)
    path, variance = PATHS["vp"](), 0.3
    gen = MixturePosterior(path, [[0.0]], variance)
    errors = []
    for steps in (32, 64):
        plan = solver.make("midpoint", path, steps, "log-snr")
        end = sample(gen, plan, 1, key=key, shape=(1,), start=jnp.ones((1, 1)))
        v = plan.grid.a**2 * variance + plan.grid.s**2
        errors.append(abs(float(end.x[0, 0]) / (v[-1] / v[0]) ** 0.5 - 1))
        assert end.nfe == plan.nfe == 2 * steps
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.2


def test_a_solver_is_known_by_its_name_alone():
    with pytest.raises(InputError, match="midpoint"):
        solver.make("midpoint", PATHS["linear"](), 8)
    SOLVERS["midpoint"] = Named(midpoint)
    assert solver.make("midpoint", PATHS["linear"](), 8).nfe == 16
    with pytest.raises(InputError, match="option of midpoint"):
        solver.make("midpoint", PATHS["linear"](), 8, order=2)


def test_a_world(key):
    simulate.world("spring")(spring)
    world = simulate.make("spring", stiffness=4.0)
    motion = world.simulate(4, key=key)
    assert motion.meta["world"] == "spring" and motion.meta["parameters"]["stiffness"] == 4.0
    angle = 2.0 * np.asarray(motion.ts)[None, :, None]
    x, v = np.asarray(motion.states["x"]), np.asarray(motion.states["v"])
    np.testing.assert_allclose(x, x[:, :1] * np.cos(angle) + v[:, :1] / 2 * np.sin(angle), atol=1e-4)
    errors = verify.laws(motion, world).means()
    assert errors["energy"] < 1e-4 and errors["replay"] < 1e-4
    stiffer = verify.laws(motion, simulate.make("spring", stiffness=5.0)).means()
    assert stiffer["energy"] > 0.01 and stiffer["replay"] > 0.01


@pytest.mark.parametrize("toy", sorted(HERE.glob("toys/*.py")), ids=lambda toy: toy.stem)
def test_the_page_carries_the_file(toy):
    assert f"```python\n{toy.read_text()}```\n" in PAGE, f"docs/add-a-method.md must show tests/toys/{toy.name}"


def test_the_page_registers_and_runs_each():
    """All its blocks but the files, which are those imported above."""
    files = [toy.read_text() for toy in HERE.glob("toys/*.py")]
    names = {**vars(toy_path), **vars(toy_solver), **vars(toy_world)}
    for block in re.findall(r"^```(?:python|py)\n(.*?)^```", PAGE, re.M | re.S):
        if block not in files:
            exec(compile(block, "add-a-method.md", "exec"), names)
    assert PATHS["ease"] is Ease and SOLVERS["midpoint"].build is midpoint and "spring" in simulate.worlds()
