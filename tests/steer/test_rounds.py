"""The rounds: a controller that does nothing changes nothing; what controllers change is exact where it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import BudgetExhausted, InputError
from kinema.generate import VP, Codec, MixturePosterior, sample, solver
from kinema.generate.solver import grids
from kinema.steer import BestOf, Budget, Controller, ParticleFilter, logmeanexp, steer

PATH = VP()
GEN = MixturePosterior(PATH, jnp.array([[-1.0, 0.0], [1.0, 0.5]]), jnp.array([0.05, 0.1]))
GRID = grids.log_snr(PATH, 12)
PLANS = {
    "euler": solver.euler(PATH, GRID),
    "dpmpp-3m": solver.dpmpp(PATH, GRID, order=3),
    "heun": solver.heun(PATH, GRID),
    "ancestral": solver.ancestral(PATH, GRID),
}


class Same(Controller):
    """Touches everything and changes nothing."""

    def edit(self, t, x, data, aux, scene, key):
        return jax.tree.map(lambda leaf: leaf * 1.0, data)

    def arrive(self, t, x, aux, scene, key):
        return x


@pytest.mark.parametrize("name", PLANS)
def test_doing_nothing_gives_what_sample_gives(name, key):
    plain = sample(GEN, PLANS[name], 8, key=key, shape=(2,)).x
    for controller in (Controller(), Same()):
        steered = steer(GEN, PLANS[name], controller, 8, key=key, shape=(2,))
        np.testing.assert_allclose(steered.x, plain, atol=2e-5)
        assert int(steered.ledger.evaluations) == 8 * PLANS[name].nfe


def test_host_rounds_are_compiled_rounds(key):
    compiled = steer(GEN, PLANS["ancestral"], Controller(), 4, key=key, shape=(2,))
    host = steer(GEN, PLANS["ancestral"], Controller(), 4, key=key, shape=(2,), runner="host")
    np.testing.assert_allclose(host.x, compiled.x, atol=2e-5)


def test_an_edit_is_a_new_data_prediction(key):
    """Every prediction replaced by one point: the last step of Euler onto s = 0 is that point exactly."""

    class Point(Controller):
        def edit(self, t, x, data, aux, scene, key):
            return jnp.array([0.3, -0.2])

    for name in ("euler", "dpmpp-3m", "ancestral"):
        x = steer(GEN, PLANS[name], Point(), 4, key=key, shape=(2,)).x
        np.testing.assert_allclose(x, np.tile([0.3, -0.2], (4, 1)), atol=1e-5)


def test_an_edit_enters_a_multistep_history(key):
    """The prediction of the first step alone is edited: a two-step method must still feel it in the second."""

    class First(Controller):
        def edit(self, t, x, data, aux, scene, key):
            return data + jnp.where(t <= GRID.times[0] + 1e-6, 1.0, 0.0)

    def shift(order):
        plan = solver.dpmpp(PATH, grids.from_times(PATH, GRID.times[:4], clean=False), order=order)
        edited = steer(GEN, plan, First(), 16, key=key, shape=(2,)).x
        return edited - sample(GEN, plan, 16, key=key, shape=(2,)).x

    assert float(jnp.abs(shift(2) - shift(1)).mean()) > 0.05 * float(jnp.abs(shift(1)).mean())


def test_edits_are_in_physical_units(key):
    codec = Codec(jnp.array([10.0, 20.0]), jnp.array([2.0, 4.0]))

    class Point(Controller):
        def edit(self, t, x, data, aux, scene, key):
            return jnp.array([11.0, 18.0])

    x = steer(GEN, PLANS["euler"], Point(), 2, key=key, shape=(2,), codec=codec).x
    np.testing.assert_allclose(x, np.tile([11.0, 18.0], (2, 1)), rtol=1e-5)


def test_best_of_keeps_the_best_of_its_own_candidates(key):
    reward = lambda x: x[0] - x[1] ** 2  # noqa: E731
    candidates = sample(GEN, PLANS["euler"], 40, key=key, shape=(2,)).x.reshape(10, 4, 2)
    best = steer(GEN, PLANS["euler"], BestOf(4, reward), 10, key=key, shape=(2,))
    wanted = candidates[jnp.arange(10), jnp.argmax(jax.vmap(jax.vmap(reward))(candidates), 1)]
    np.testing.assert_allclose(best.x, wanted, atol=2e-5)
    assert int(best.ledger.rewards) == 40


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_particle_filter_tilts_a_mixture(key, threshold):
    """p exp(x_0): weights w_k exp(mu_k + c_k / 2), means mu_k + c_k; log of the normaliser is theirs."""
    share = 0.5 * np.exp(np.array([-1.0, 1.0]) + np.array([0.05, 0.1]) / 2)
    mean = share @ np.array([-1.0 + 0.05, 1.0 + 0.1]) / share.sum()
    plan = solver.ancestral(PATH, grids.log_snr(PATH, 60))
    n = 2000
    result = steer(GEN, plan, ParticleFilter(lambda x: x[0], threshold=threshold), n, key=key, shape=(2,))
    weight = jax.nn.softmax(result.log_weight)
    # the standard error of weighted draws: tilted variance over the effective size of exp(x_0) under p
    spread = np.sqrt(1.0 / (0.5 * n))
    assert_within_error(weight @ result.x[:, 0], mean, standard_error=spread)
    assert_within_error(logmeanexp(result.log_weight), np.log(share.sum()), standard_error=0.03)
    assert result.distinct >= (n if threshold == 0 else n // 10)


def test_resampling_carries_the_whole_state(key):
    """Parents reversed once before the first step: slot k then continues particle n - 1 - k, history and all."""

    class Reverse(Controller):
        def plan(self, particles, scene, key):
            slots = jnp.arange(particles.size)
            return jnp.where(particles.row[0] == 2, slots[::-1], slots)

    plain = sample(GEN, PLANS["dpmpp-3m"], 6, key=key, shape=(2,)).x
    turned = steer(GEN, PLANS["dpmpp-3m"], Reverse(), 6, key=key, shape=(2,))
    np.testing.assert_allclose(turned.x, plain[::-1], atol=2e-5)
    assert turned.ancestors.tolist() == [5, 4, 3, 2, 1, 0]


def test_budgets(key):
    with pytest.raises(
        BudgetExhausted, match="8 particles and 12 steps need 96 network evaluations; the budget holds 50"
    ):
        steer(GEN, PLANS["euler"], Controller(), 8, key=key, shape=(2,), budget=Budget(evaluations=50))
    with pytest.raises(BudgetExhausted, match="32 rewards"):
        steer(GEN, PLANS["euler"], BestOf(4, jnp.sum), 8, key=key, shape=(2,), budget=Budget(rewards=20))
    steer(GEN, PLANS["euler"], BestOf(4, jnp.sum), 8, key=key, shape=(2,), budget=Budget(rewards=32))


def test_bad_input(key):
    with pytest.raises(InputError, match="identical; use a stochastic solver"):
        steer(GEN, PLANS["euler"], ParticleFilter(jnp.sum), 8, key=key, shape=(2,))
    with pytest.raises(InputError, match="n must be at least 1, got 0"):
        steer(GEN, PLANS["euler"], Controller(), 0, key=key, shape=(2,))
    with pytest.raises(InputError, match="start must have a leading axis of n=4"):
        steer(GEN, PLANS["euler"], Controller(), 4, key=key, shape=(2,), start=jnp.zeros((3, 2)))
    with pytest.raises(InputError, match="threshold must be in"):
        ParticleFilter(jnp.sum, threshold=2.0)
    with pytest.raises(InputError, match="did you mean 'systematic'"):
        ParticleFilter(jnp.sum, resampler="systemic")
    with pytest.raises(InputError, match="n must be at least 1"):
        BestOf(0, jnp.sum)
    with pytest.raises(InputError, match="budget of rewards must be at least 1"):
        Budget(rewards=0)
