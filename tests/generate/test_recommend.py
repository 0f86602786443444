"""The recommended plan is the best there is, on starts and problems that the pilot has not seen."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate import VP, Bridge, Linear, MixturePosterior, sample, solver
from kinema.generate.alike import bind_alike
from kinema.generate.candidates import zoo
from kinema.generate.pilot import distances, fine_rows, rms
from kinema.generate.recommendation import recommend
from kinema.generate.solver import grids

PATH, SHAPE, CALLS = VP(), (4,), 6
SOLVERS = ("euler", "dpmpp-2m", "lms-3", "heun")


@pytest.fixture(scope="module")
def plans():
    return zoo(PATH, CALLS, solvers=SOLVERS)


def mixture(key, *, spread: float):
    """Three components of unequal variances; one Gaussian with `spread` 0."""
    means = jr.normal(key, (1, 4)) + spread * jr.normal(jr.fold_in(key, 1), (3, 4))
    return MixturePosterior(PATH, means, jnp.tile(jnp.array([0.02, 0.1, 0.5, 2.0]), (3, 1)))


def test_within_5_percent_of_the_best_for_a_gaussian(plans):
    """The exact flow keeps the standardised point: x ends at m + C^1/2 (C a^2 + s^2)^-1/2 (x - a m)."""
    gen = mixture(jr.key(1), spread=0.0)
    said = recommend(gen, CALLS, shape=SHAPE, key=jr.key(3), candidates=plans, n=1024)
    rows, z, errors = bind_alike(plans, gen, nfe=CALLS), np.asarray(jr.normal(jr.key(4), (64, 4))), {}
    mean, variance = np.asarray(gen.means[0]), np.asarray(gen.variances[0])
    for name, plan in plans.items():
        a, s = plan.grid.a[0], np.float32(plan.grid.s[0])
        exact = mean + np.sqrt(variance / (a**2 * variance + s**2)) * (s * z - a * mean)
        x = sample(gen, rows[name], 64, key=jr.key(0), shape=SHAPE, start=jnp.asarray(s * z)).x
        errors[name] = rms(np.square(x - exact))
    assert errors[said.name] <= 1.05 * min(errors.values())
    assert said.plan.nfe <= CALLS and said.name in said.reason and said.fine_error < 0.1 * said.error
    tried = {row[0]: row[3] for row in said.table.rows}
    assert tried.keys() == plans.keys() and tried[said.name] <= 1.02 * min(tried.values())


def test_within_5_percent_of_the_best_for_a_mixture(plans):
    gen = mixture(jr.key(7), spread=1.0)
    said = recommend(gen, CALLS, shape=SHAPE, key=jr.key(8), candidates=plans, n=1024)
    rows, fine = bind_alike(plans, gen, nfe=CALLS), fine_rows(gen, 128)["whole"]
    found = {name: [] for name in rows}
    for key in jr.split(jr.key(9), 16):
        truth = sample(gen, fine, 64, key=key, shape=SHAPE).x
        for name, squares in distances(gen, rows, truth, key=key, shape=SHAPE).items():
            found[name].append(squares)
    errors = {name: rms(np.concatenate(squares)) for name, squares in found.items()}
    assert errors[said.name] <= 1.05 * min(errors.values())


def test_a_tie_goes_to_the_simpler(plans):
    """Of two names of one plan the first is taken."""
    one, seen = plans["dpmpp-2m on log-snr to 4.5"], []
    options = {"candidates": {"a": one, "b": one}, "n": 32, "progress": seen.append}
    said = recommend(mixture(jr.key(1), spread=0.0), CALLS, shape=SHAPE, key=jr.key(3), **options)
    assert said.name == "a" and "b" in said.reason
    assert seen == sorted(seen) and seen[0] > 0 and seen[-1] == 1


def test_padded_rows_stand_still(plans):
    """Heun takes 5 calls where 6 are allowed: with one more row it ends where it did."""
    gen, options = mixture(jr.key(1), spread=0.0), {"key": jr.key(0), "shape": SHAPE}
    heun = plans["heun on log-snr to 4.5"]
    padded = bind_alike({"heun": heun}, gen, nfe=CALLS)["heun"]
    assert (heun.nfe, padded.micro_steps) == (5, 6)
    plain = sample(gen, heun, 64, **options).x
    np.testing.assert_allclose(sample(gen, padded, 64, **options).x, plain, rtol=1e-5, atol=1e-6)
    found = distances(gen, {"heun": padded}, plain + 0.5, **options)["heun"]
    np.testing.assert_allclose(found, 0.25, rtol=1e-4)


def test_plans_with_a_coefficient_for_each_coordinate_share_the_program():
    """DPM-Solver-v3 with statistics that differ by coordinate beside a plan of plain numbers, on a known origin."""
    gen = MixturePosterior(Bridge(), np.zeros((1, 4)), 0.1)
    table = np.linspace(-6.0, 6.0, 40)[:, None] * np.ones(4)
    statistics = solver.ModelStatistics(table[:, 0], 0.5 + 0 * table, 0 * table, 0.1 * table)
    grid = grids.log_snr(gen.path, CALLS, low=-3.0, high=3.0)
    pair = {
        "plain": solver.dpmpp(gen.path, grid),
        "wide": solver.dpm_solver_v3(gen.path, grid, statistics=statistics),
    }
    rows = bind_alike(pair, gen)
    options = {"key": jr.key(0), "shape": SHAPE, "x0": jnp.ones((8, 4))}
    found = distances(gen, rows, jnp.zeros((8, 4)), **options)
    for name, plan in pair.items():
        alone = sample(gen, plan, 8, **options).x
        np.testing.assert_allclose(found[name], jnp.square(alone).mean(1), rtol=1e-4)


def test_zoo_leaves_out_what_a_path_does_not_allow():
    """Flow matching begins without data: no noise can be held over equal steps in time, velocity and data can."""
    names = zoo(Linear(), 3, solvers=("euler", "deis-2", "heun")).keys()
    assert "euler on uniform time" in names and "deis-2 on log-snr to 3" in names
    assert "deis-2 on uniform time" not in names


def test_bad_input_is_refused(plans):
    gen, key = mixture(jr.key(1), spread=0.0), jr.key(0)
    few = {"euler": solver.euler(PATH, grids.karras(PATH, 3, high=3.0))}
    for word, nfe, options in (
        ("nfe", 0, {}),
        ("n must", 3, {"n": 31}),
        ("fine", 3, {"fine": 0}),
        ("shape", 3, {"shape": (3,)}),
        ("cond", 3, {"cond": jnp.zeros(5)}),
        ("takes 3 calls", 2, {}),
        ("adds noise", 3, {"candidates": {"x": solver.ancestral(PATH, grids.karras(PATH, 3, high=3.0))}}),
        ("none of the candidates", 3, {"candidates": {"x": solver.euler(Linear(), grids.uniform_time(Linear(), 3))}}),
    ):
        with pytest.raises(InputError, match=word):
            recommend(gen, nfe, **({"shape": SHAPE, "key": key, "candidates": few} | options))
    with pytest.raises(InputError, match="unknown solver 'rk'"):
        zoo(PATH, 3, solvers=("rk",))
    with pytest.raises(InputError, match="x0"):
        recommend(MixturePosterior(Bridge(), np.zeros((1, 4)), 1.0), 3, shape=SHAPE, key=key, candidates=few)
