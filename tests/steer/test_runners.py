"""Runners: what stops them, what they agree on, what they refuse."""

from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from movers import GEN, GRID, PATH, PLANS, Branch, Follow, Stagger, down, follow

from kinema.errors import BudgetExhausted, InputError
from kinema.generate import VP, MixturePosterior, sample, solver
from kinema.generate.noise import NoiseLaw
from kinema.steer import BestOf, Budget, Controller, Ledger, Move, ParticleFilter, steer


@pytest.mark.parametrize(
    ("controller", "name"),
    [
        (Branch(), "dpmpp-3m"),
        (Controller(), "heun"),
        (ParticleFilter(lambda x: x[0], resample_last=True), "ancestral"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_runners_agree(controller, name, key, optimised):
    scan, whiles, host = (
        steer(GEN, PLANS[name], controller, 6, key=key, shape=(2,), runner=runner, budget=budget)
        for runner, budget in (("scan", None), ("while", Budget(evaluations=10_000)), ("host", None))
    )
    for one, other in zip(jax.tree.leaves(scan), jax.tree.leaves(whiles)):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(jax.tree.leaves(scan), jax.tree.leaves(host)):
        np.testing.assert_allclose(one, other, atol=5e-5)


class Priced(Controller):
    """Looks at every particle after every step, and once more at the end."""

    def price(self, particles, scene):
        look = Ledger.empty().add(rewards=particles.size)
        return look, look

    def update(self, particles, data, scene, ledger, key):
        return particles, ledger.add(rewards=particles.size)

    def finish(self, x, particles, scene, ledger, key):
        return x, particles.log_weight, ledger.add(rewards=particles.size)


@pytest.mark.parametrize("runner", ["while", "host"])
def test_a_budget_stops_before_it_is_passed(runner, key):
    plan, n = PLANS["euler"], 4

    def run(controller, budget):
        return steer(GEN, plan, controller, n, key=key, shape=(2,), runner=runner, budget=budget)

    cut = run(Controller(), Budget(evaluations=5 * n + 3))
    assert int(cut.ledger.evaluations) == 5 * n
    assert not cut.finished.any()
    assert np.isfinite(cut.ess).tolist() == [True] * 4 + [False] * 7
    assert run(Controller(), Budget(evaluations=12 * n)).finished.all()

    priced = run(Priced(), Budget(rewards=6 * n + 1))
    assert int(priced.ledger.rewards) == 6 * n
    assert int(priced.ledger.evaluations) == 6 * n

    halves = run(Stagger(), Budget(evaluations=n * 12 - 3))
    assert halves.finished.tolist() == [True, False, True, False]
    assert int(halves.ledger.evaluations) == n * 12 - 4
    np.testing.assert_allclose(halves.x[::2], sample(GEN, plan, n, key=key, shape=(2,)).x[::2], atol=2e-5)


def test_what_has_not_finished_is_its_data_prediction(key):
    gen = MixturePosterior(PATH, jnp.array([[0.4, -0.3]]))
    cut = steer(gen, PLANS["euler"], Controller(), 2, key=key, shape=(2,), runner="while", budget=Budget(evaluations=6))
    np.testing.assert_allclose(cut.x, np.tile([0.4, -0.3], (2, 1)), atol=1e-6)


def test_budgets_that_hold_nothing(key):
    with pytest.raises(BudgetExhausted, match="8 particles and 1 steps need 8 network evaluations; the budget holds 7"):
        steer(
            GEN,
            PLANS["euler"],
            BestOf(2, jnp.sum),
            4,
            key=key,
            shape=(2,),
            budget=Budget(evaluations=7),
            runner="while",
        )
    with pytest.raises(BudgetExhausted, match="spent 124 evaluations"):
        steer(GEN, PLANS["dpmpp-3m"], Branch(), 8, key=key, shape=(2,), budget=Budget(evaluations=123))


def test_gradients_flow_through_a_scan(x64, key):
    """Edits pull towards a point through a renoising: reverse mode agrees with differences."""

    class Pull(Follow):
        point: jax.Array | float = 0.0

        def edit(self, t, x, data, aux, scene, key):
            return data + 0.3 * (self.point - data)

    gen, plan = MixturePosterior(PATH, jnp.array([[-1.0], [1.0]]), 0.2), solver.dpmpp(PATH, GRID, order=2)
    moves = follow(*down(9), (Move.RENOISE, 4), (Move.HOLD, 0), (Move.INVERT, 2), *down(12))

    @jax.value_and_grad
    def loss(point):
        return jnp.mean(steer(gen, plan, Pull(moves, True, point), 8, key=key, shape=(1,)).x ** 2)

    low, (_, slope), high = (loss(jnp.array(point)) for point in (0.4999, 0.5, 0.5001))
    assert abs(slope) > 0.1
    np.testing.assert_allclose(slope, (high[0] - low[0]) / 2e-4, rtol=1e-5)


class Laplace(NoiseLaw):
    gaussian: ClassVar[bool] = False

    def sample(self, key, like):
        return jax.tree.map(lambda leaf: jr.laplace(key, leaf.shape, leaf.dtype), like)

    def log_prob(self, z):
        return -jnp.sum(jnp.abs(z))

    def score(self, z):
        return -jnp.sign(z)


class Bad(Controller):
    """One move (kernel, to) of slot 2 alone, before row `at`."""

    move: jax.Array
    names: tuple[str, ...] = ("hold", "renoise", "invert")

    @property
    def kernels(self):
        return self.names

    def rounds(self, scene):
        return scene.rows.micro_steps + 1

    def plan(self, particles, scene, key):
        at, kernel, to = self.move
        now = (particles.row == at) & (jnp.arange(particles.size) == 2)
        return Move(jnp.where(now, kernel, Move.DENOISE), to)


@pytest.mark.parametrize(
    ("move", "name", "message"),
    [
        ((3, Move.RENOISE, 3), "euler", "move for particle 2 before row 3, to=3: only earlier rows that begin a whole"),
        ((3, Move.RENOISE, -1), "euler", "to=-1: only earlier rows"),
        ((3, 4, 0), "euler", "one of the numbers of Move, 0 to 3"),
        ((4, Move.INVERT, 1), "heun", "before row 4, to=1: only earlier rows that begin a whole step"),
        ((3, Move.RENOISE, 0), "heun", "inside a step must finish it"),
        ((12, Move.INVERT, 0), "euler", "a finished particle has no prediction"),
    ],
)
def test_illegal_moves(move, name, message, key):
    with pytest.raises(InputError, match=message):
        steer(GEN, PLANS[name], Bad(jnp.array(move)), 4, key=key, shape=(2,))


@pytest.mark.parametrize("runner", ["while", "host"])
def test_kernels_that_were_not_declared(runner, key):
    bad = Bad(jnp.array([3, Move.HOLD, 0]), ("renoise",))
    with pytest.raises(InputError, match="`kernels` does not name this kernel"):
        steer(GEN, PLANS["euler"], bad, 4, key=key, shape=(2,), runner=runner)


STAY = jnp.zeros(3, jnp.int32)


def test_bad_input(key):
    def run(controller, plan=PLANS["euler"], gen=GEN, **options):
        steer(gen, plan, controller, 4, key=key, shape=(2,), **options)

    class Undeclared(Controller):
        def plan(self, particles, scene, key):
            return Move(Move.HOLD)

    class Matrix(Bad):
        def plan(self, particles, scene, key):
            return Move(jnp.zeros((2, 2), int))

    class Never(Bad):
        def rounds(self, scene):
            return 0

    with pytest.raises(InputError, match="did you mean 'renoise'"):
        run(Bad(STAY, ("renoising",)))
    with pytest.raises(InputError, match="Undeclared plans a Move but declares no kernels"):
        run(Undeclared())
    with pytest.raises(InputError, match="unknown runner 'scna'; did you mean 'scan'"):
        run(Controller(), runner="scna")
    with pytest.raises(InputError, match="Never must take at least 1 round, got 0"):
        run(Never(STAY))
    with pytest.raises(InputError, match="kernel of a Move must be a whole number or 4 of them, got int32 of shape"):
        run(Matrix(STAY))
    laplace = MixturePosterior(VP(noise=Laplace()), jnp.zeros((1, 2)))
    with pytest.raises(InputError, match="Bad renoises, which needs normal noise; this path has Laplace"):
        run(Bad(STAY), gen=laplace)
    with pytest.raises(InputError, match="Bad goes back, but dpmpp-3m keeps memory between steps"):
        run(Bad(STAY), replace(PLANS["dpmpp-3m"], fallback=()))
