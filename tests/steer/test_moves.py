"""Moves: particles that hold, go back by noise or by the flow."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from movers import GEN, GRID, PATH, PLANS, Branch, Follow, Stagger, down, follow

from kinema.generate import MixturePosterior, sample, solver
from kinema.generate.solver import grids
from kinema.steer import Move, steer
from kinema.steer.moves import Levels


@pytest.mark.parametrize("name", ["dpmpp-3m", "ancestral"])
def test_denoising_all_gives_what_sample_gives(name, key):
    plan = PLANS[name]
    moved = steer(GEN, plan, Follow(follow(*down(12))), 8, key=key, shape=(2,))
    np.testing.assert_allclose(moved.x, sample(GEN, plan, 8, key=key, shape=(2,)).x, atol=2e-5)
    assert int(moved.ledger.evaluations) == 8 * plan.nfe
    assert moved.finished.all()


def test_held_particles_keep_every_byte_and_cost_nothing(key):
    seen, plan = [], PLANS["dpmpp-3m"]
    result = steer(GEN, plan, Stagger(seen.append), 4, key=key, shape=(2,), runner="host")
    first = seen[0]
    for later in seen[1 : plan.nfe]:
        for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(later)):
            np.testing.assert_array_equal(before[1::2], after[1::2])
        assert not np.array_equal(first.state.x[::2], later.state.x[::2])
    np.testing.assert_allclose(result.x, sample(GEN, plan, 4, key=key, shape=(2,)).x, atol=2e-5)
    assert int(result.ledger.evaluations) == 4 * plan.nfe
    assert len(seen) == 2 * plan.nfe + 1


@pytest.mark.parametrize("name", ["euler", "heun", "churn"])
@pytest.mark.parametrize("steps", [3, 5])
def test_renoised_particles_have_the_law_of_the_earlier_row(name, steps, key):
    """Data N(m, c): before a row of (a, s) particles are N(a m, a^2 c + s^2); from inside the plan and from its end."""
    mean, cov, n = 0.7, 0.3, 40_000
    grid = grids.log_snr(PATH, 5)
    plan = getattr(solver, name)(PATH, grid)
    edges = np.r_[0, np.flatnonzero(plan.whole) + 1]
    levels = Levels.of(plan, PATH)
    start, to = edges[steps], edges[1]
    a, s = levels.a_here[start], levels.s_here[start]
    key_x, key_z = jr.split(key)
    x = a * mean + jnp.sqrt(a**2 * cov + s**2) * jr.normal(key_x, (n,))
    found = levels.renoise(x, jr.normal(key_z, (n,)), start, to)
    variance = grid.a[1] ** 2 * cov + grid.s[1] ** 2
    assert_within_error(found.mean(), grid.a[1] * mean, standard_error=np.sqrt(variance / n))
    assert_within_error(found.var(), variance, standard_error=variance * np.sqrt(2 / n))
    lifted = name == "churn" and steps < 5
    assert (levels.s_here[start] > 1.01 * grid.s[steps]) == lifted


def test_noise_put_back_is_new_every_time(key):
    """From the end to the source and down again, by a stochastic plan: only what the source keeps of data is shared."""
    gen, plan, n = MixturePosterior(PATH, jnp.zeros((1, 1)), 1.0), PLANS["ancestral"], 4000
    once = steer(gen, plan, Follow(follow(*down(12))), n, key=key, shape=(1,)).x[:, 0]
    twice = steer(gen, plan, Follow(follow(*down(12), (Move.RENOISE, 0), *down(12))), n, key=key, shape=(1,))
    assert_within_error(np.corrcoef(once, twice.x[:, 0])[0, 1], plan.grid.a[0], standard_error=n**-0.5)
    assert int(twice.ledger.evaluations) == 2 * n * plan.nfe


def test_inversion_is_exact_for_a_point(key):
    gen = MixturePosterior(PATH, jnp.array([[0.4, -0.3]]))
    stop = steer(gen, PLANS["euler"], Follow(follow(*down(3))), 8, key=key, shape=(2,)).x
    back = steer(gen, PLANS["euler"], Follow(follow(*down(10), (Move.INVERT, 3))), 8, key=key, shape=(2,)).x
    np.testing.assert_allclose(back, stop, atol=2e-5)


def test_inversion_retraces_the_flow_to_first_order(key):
    """A third of the rows back one by one: the gap to where they began halves with the steps."""

    def gap(steps):
        plan = solver.euler(PATH, grids.log_snr(PATH, steps))
        low, high = steps // 3, 2 * steps // 3
        there = steer(GEN, plan, Follow(follow(*down(low))), 16, key=key, shape=(2,)).x
        back = follow(*down(high), *((Move.INVERT, j) for j in range(high - 1, low - 1, -1)))
        return float(jnp.abs(steer(GEN, plan, Follow(back), 16, key=key, shape=(2,)).x - there).mean())

    coarse, fine = gap(24), gap(48)
    assert coarse < 0.2
    assert np.log2(coarse / fine) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", ["unipc", "heun"])
def test_a_solver_sent_back_begins_a_new_history(name, key):
    """From the point it was sent to it goes on as a plan of the rows that remain, begun there."""

    def build(times):
        options = {} if name == "heun" else {"order": 3}
        return getattr(solver, name)(PATH, grids.from_times(PATH, times, clean=True), **options)

    times, each = GRID.times[:-1], 2 if name == "heun" else 1
    turn = (*down(5), (Move.INVERT, 2 * each))
    point, ended = (
        steer(GEN, build(times), Follow(follow(*moves)), 8, key=key, shape=(2,)) for moves in (turn, (*turn, *down(10)))
    )
    wanted = sample(GEN, build(times[2:]), 8, key=key, shape=(2,), start=point.x)
    np.testing.assert_allclose(ended.x, wanted.x, atol=5e-5)
    assert ended.finished.all()
    assert not point.finished.any()


def test_a_restart_forgets_what_was_wrong_above(key):
    """Data N(0, c), one bold step first: Euler multiplies by a known factor a row, renoising adds a known variance."""
    cov, n, low, high, times = 0.3, 20_000, 22, 1, 3
    fine = grids.log_snr(PATH, 45).times
    plan = solver.euler(PATH, grids.from_times(PATH, np.r_[fine[0], fine[22:-1]], clean=True))
    gen, a, s = MixturePosterior(PATH, jnp.zeros((1, 1)), cov), plan.grid.a, plan.grid.s
    pull = a * cov / (a**2 * cov + s**2)
    factor = s[1:] / s[:-1] + (a[1:] - a[:-1] * s[1:] / s[:-1]) * pull[:-1]

    def variance(turns):
        value = s[0] ** 2 * np.prod(factor[:low] ** 2)
        for _ in range(turns):
            ratio = a[high] / a[low]
            value = (ratio**2 * (value - s[low] ** 2) + s[high] ** 2) * np.prod(factor[high:low] ** 2)
        return value * np.prod(factor[low:] ** 2)

    cycle = ((Move.RENOISE, high), *down(low - high))
    moves = follow(*down(low), *cycle * times, *down(plan.nfe - low))
    found = steer(gen, plan, Follow(moves, True), n, key=key, shape=(1,)).x.var()
    assert_within_error(found, variance(times), standard_error=variance(times) * np.sqrt(2 / n))
    assert abs(found - cov) < 0.5 * abs(variance(0) - cov)


def test_children_of_one_parent_part_at_several_levels(key):
    result = steer(GEN, PLANS["dpmpp-3m"], Branch(), 8, key=key, shape=(2,), runner="while")
    plain = sample(GEN, PLANS["dpmpp-3m"], 8, key=key, shape=(2,)).x
    np.testing.assert_allclose(result.x[4:], plain[4:], atol=2e-5)
    assert result.ancestors.tolist() == [0, 0, 0, 0, 4, 5, 6, 7]
    assert len(np.unique(np.asarray(result.x[:4, 0]).round(4))) == 4
    assert int(result.ledger.evaluations) == 8 * 12 + 2 * 8 + 2 * 6
    assert result.finished.all()
    assert int(np.isfinite(result.ess).sum()) == 12 + 1 + 8
