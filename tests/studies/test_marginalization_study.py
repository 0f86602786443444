"""The study runs, and its yardsticks are right where the answer is known."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from conftest import assert_within_error

from kinema import studies
from kinema.generate import discrete
from kinema.generate.discrete import Ising, MarginalModel
from kinema.studies import marginalization_digits as digits
from kinema.studies import marginalization_energies as energies
from kinema.studies.marginalization_energies import Truth


def test_smoke():
    evidence = studies.run("marginalization-models", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert [figure.name for figure in evidence.figures] == ["lattice", "agreement", "completions", "strings"]
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert 0 < values["KL to the lattice's law"] < 3
    assert values["speed, one call over one order"] > 2
    assert 0 < values["effective share of samples"] <= 1


def test_free_spins_are_independent_sites_and_an_exact_model_has_no_error():
    """Without bonds every marginal is a product: the model below knows it, and so does the baseline."""
    field = 0.7
    truth = Truth.of(Ising((2, 3), 0.0, field))
    np.testing.assert_allclose(truth.kl_of_sites(), 0, atol=1e-5)

    def trunk(symbols):
        known = symbols[:, 0] + symbols[:, 1]
        spins = symbols[:, 1] - symbols[:, 0]
        free = jnp.log(2 * jnp.cosh(field))
        return (field * spins + (1 - known) * free).sum() / 6**0.5, jnp.tile(jnp.array([-field, field]), (6, 1))

    judged = energies.judge(truth, MarginalModel(trunk, 6, 2))
    np.testing.assert_allclose([judged["kl"], judged["error"]], 0, atol=1e-5)
    np.testing.assert_allclose(judged["effective"], 1, atol=1e-4)


def test_uniform_model_has_the_kl_of_the_uniform_law():
    truth = Truth.of(Ising((3, 3)))
    model = MarginalModel(lambda symbols: (jnp.zeros(()), jnp.zeros((9, 2))), 9, 2)
    exact = np.mean(-9 * np.log(2) - np.asarray(truth.log_p, np.float64))
    np.testing.assert_allclose(energies.judge(truth, model)["kl"], exact, rtol=1e-4)
    assert 0 < truth.kl_of_sites() < exact


def test_digits_are_binary_and_completions_keep_what_was_given():
    train, test = digits.binary_digits()
    assert (len(train), len(test)) == (1500, 297)
    assert set(np.unique(train)) == {0, 1} and 0.2 < train.mean() < 0.5
    net = discrete.MarginalMLP(64, 2, width=8, depth=1, key=jr.key(0))
    completed = digits.complete(MarginalModel(net, 64, 2, normalized=True), jnp.asarray(test[:2]), jr.key(1))
    np.testing.assert_array_equal(completed[:, :, :32], np.repeat(test[:2, None, :32], 4, 1))
    assert 0.3 < completed[:, :, 32:].mean() < 0.7


def test_baseline_samples_and_scores_along_one_order():
    """At the exact conditionals of independent sites, log p along any order is the law's and samples have its mean."""
    field, order = 0.7, jnp.array([3, 0, 2, 1])
    model = MarginalModel(lambda symbols: (jnp.zeros(()), jnp.tile(jnp.array([-field, field]), (4, 1))), 4, 2)
    x = jnp.array([1, 0, 0, 1])
    exact = field * (2 * x - 1).sum() - 4 * np.log(2 * np.cosh(field))
    np.testing.assert_allclose(energies.log_prob_along(model, x, order), exact, rtol=1e-5)
    drawn = jax.vmap(lambda key: energies.draw_along(model, order, key))(jr.split(jr.key(0), 4000))
    share = 1 / (1 + np.exp(-2 * field))
    assert_within_error(drawn.mean(0), np.full(4, share), standard_error=(share * (1 - share) / 4000) ** 0.5)
