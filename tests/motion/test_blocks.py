"""Brownian increments made in blocks against the tree that is asked in every step, and steps foreseen against taken."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.motion import FunctionLaw, integrate
from kinema.motion.blocks import Step, longest_for
from kinema.motion.increments import increments
from kinema.motion.stepping import EvenSteps

LAW = FunctionLaw(lambda t, x, args: -args * x, lambda t, x, args: 0.5 * x)


def test_increments_and_areas_are_those_of_the_tree(x64):
    """Also where times are far apart and close, shared by a leaf, or the last again."""
    shape, levy = {"a": jax.ShapeDtypeStruct((2,), jnp.float64)}, diffrax.SpaceTimeLevyArea
    tree = diffrax.VirtualBrownianTree(1.0, 3.0, 1e-3, shape, jr.key(100), levy_area=levy)
    times = jnp.array([1.0, 1.001, 1.0023, 1.5, 1.7501, 1.7502, 2.0, 2.9, 3.0, 3.0])
    one = jax.jit(lambda begin, end: tree.evaluate(begin, end, use_levy=True))
    truth = jax.tree.map(lambda *rows: jnp.stack(rows), *map(one, times[:-1], times[1:]))
    made = jax.jit(lambda times: increments(tree, times))(times)
    assert jax.tree.structure(made) == jax.tree.structure(truth)
    assert jnp.abs(made.W["a"] - truth.W["a"]).max() < 1e-12 and jnp.abs(made.H["a"] - truth.H["a"]).max() < 1e-11
    assert jnp.allclose(made.dt["a"], jnp.diff(times), atol=1e-12)


class Plain(diffrax.RecursiveCheckpointAdjoint):
    """Diffrax's own loop over steps, since it is a class that blocks do not know."""


def test_solve_in_blocks_is_that_of_single_steps(x64):
    """States, steps and gradients, over more than a block and where `max_steps` ends the run in the middle of one."""
    ts = jnp.array([0.0, 0.2, 0.7, 1.0])  # 14, 34 and 20 steps

    def run(rate, dt, adjoint):
        given = {"dt": dt, "key": jr.key(101), "args": rate, "max_steps": 50, "throw": False, "adjoint": adjoint}
        traj = integrate(LAW, jnp.ones(3), ts, method="euler_maruyama", **given)
        return (traj.states[:3] ** 2).sum(), (traj.states, traj.constants)

    value = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=2)
    (_, (states, constants)), slope = value(0.7, 0.015, diffrax.RecursiveCheckpointAdjoint())
    (_, (truth, truths)), true_slope = value(0.7, 0.015, Plain())
    assert constants["steps"] == truths["steps"] == 50 and not constants["ok"]
    assert jnp.isinf(states[3]).all() and jnp.abs(states[:3] - truth[:3]).max() < 1e-12
    assert slope == pytest.approx(float(true_slope), rel=1e-10)


def test_a_solver_may_ask_for_parts_of_a_step():
    """The tree answers then, by the same path: two halves of an increment are the increment."""
    like = jax.ShapeDtypeStruct((2,), jnp.float32)
    tree = diffrax.VirtualBrownianTree(0.0, 1.0, 0.1, like, jr.key(102))
    begin, middle, end = jnp.array(0.2), jnp.array(0.4), jnp.array(0.7)
    known = jax.tree.map(lambda x: x[0], increments(tree, jnp.stack([begin, end])))
    path = Step(begin, end, known, tree, tree.levy_area)
    assert path.evaluate(begin, end) is known.W and path.evaluate(begin, end, use_levy=True) is known
    assert jnp.abs(path.evaluate(begin, middle) + path.evaluate(middle, end) - known.W).max() < 1e-6


def test_steps_ahead_are_the_steps_taken():
    rule = EvenSteps(jnp.array([0.0, 0.3, 0.4, 1.0]), jnp.asarray(0.16))  # 2, 1 and 4 steps
    end, state = rule.init(*[None] * 8)
    taken, foreseen = [], []
    for _ in range(7):
        taken.append(float(end))
        foreseen.append(np.asarray(rule.ahead(state, 5)))
        _, _, end, _, state, _ = rule.adapt_step_size(None, end, *[None] * 5, state)
    for i, ends in enumerate(foreseen):
        assert np.array_equal(ends, np.float32([*taken, *[1.0] * 5][i : i + 5]))


def test_short_solves_have_short_blocks():
    assert [longest_for(steps) for steps in (1, 3, 4, 31, 32, 10**9)] == [2, 4, 8, 32, 64, 64]
