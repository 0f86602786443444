"""Marginalization models against a joint law whose every marginal is a sum, and the Ising model by enumeration."""

import itertools
import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from conftest import assert_within_error

from kinema import learn
from kinema.errors import InputError, NotFinite
from kinema.generate import discrete
from kinema.generate.discrete import Ising, MarginalMLP, MarginalModel
from kinema.generate.discrete.energy import _traceable
from kinema.generate.discrete.orders import check_sample, known_first, random_order, symbols

L, K = 4, 3
WEIGHTS = np.random.default_rng(0).exponential(size=(K,) * L) ** 2  # a joint far from independent
STATES = discrete.all_states(L, K)
PARTS = [
    (x, mask) for x in itertools.product(range(K), repeat=L) for mask in itertools.product([False, True], repeat=L)
]


class Table(eqx.Module):
    """m and logits of every partly known state, from sums over the joint."""

    log_marginals: jax.Array
    logits: jax.Array

    def __init__(self, weights):
        ends = (*range(K), slice(None))
        marginals, logits = np.zeros((K + 1,) * L), np.zeros((K + 1,) * L + (L, K))
        for index in itertools.product(range(K + 1), repeat=L):
            part = [ends[k] for k in index]
            marginals[index] = weights[tuple(part)].sum()
            for i, k in itertools.product(range(L), range(K)):
                mass = weights[(*part[:i], k, *part[i + 1 :])].sum()
                logits[index][i, k] = np.log(mass)
        self.log_marginals, self.logits = jnp.asarray(np.log(marginals)), jnp.asarray(logits)

    def __call__(self, x):
        index = tuple(x.argmax(-1))
        return self.log_marginals[index] / math.sqrt(L), self.logits[index]


@pytest.fixture(scope="module")
def model():
    return MarginalModel(Table(WEIGHTS), L, K)


@pytest.fixture(scope="module")
def probabilities():
    return WEIGHTS.ravel() / WEIGHTS.sum()


def small(key, length=9, categories=2, **settings):
    net = MarginalMLP(length, categories, width=32, depth=1, key=key)
    return MarginalModel(net, length, categories, **settings)


def randomised(model, key):
    """The same model, its last layers no longer zero."""
    leaves, structure = jax.tree.flatten(model)
    return jax.tree.unflatten(
        structure, [x + 0.3 * jr.normal(jr.fold_in(key, i), x.shape) for i, x in enumerate(leaves)]
    )


def test_marginals_and_conditionals_are_sums(model):
    for x, mask in PARTS[::29]:
        part = tuple(k if known else slice(None) for k, known in zip(x, mask))
        mass = WEIGHTS[part].sum()
        x, mask = jnp.array(x), jnp.array(mask)
        np.testing.assert_allclose(model.log_marginal(x, mask), np.log(mass), rtol=1e-4, atol=1e-5)
        rows = np.exp(model.conditionals(x, mask))
        np.testing.assert_allclose(rows[~np.asarray(mask)].sum(-1), 1, rtol=1e-5)


def test_a_consistent_model_has_no_gap_at_any_order_and_number(model):
    @jax.jit
    @jax.vmap
    def gaps(x, key):
        return jnp.stack([discrete.self_consistency_loss(model, x, key, count=count) for count in range(L)])

    assert float(gaps(jnp.asarray(STATES), jr.split(jr.key(0), len(STATES))).max()) < 1e-9


def test_the_gap_sees_an_inconsistent_leaf(model):
    """With the leaf off by a, one equation in L is off by a."""
    x, log_f = jnp.array([0, 1, 2, 1]), jnp.log(WEIGHTS[0, 1, 2, 1])
    loss = jax.jit(jax.vmap(lambda key, leaf: discrete.self_consistency_loss(model, x, key, leaf), (0, None)))
    exact, off = (loss(jr.split(jr.key(1), 4000), log_f + shift) for shift in (0.0, 2.0))
    assert float(exact.max()) < 1e-9
    assert_within_error(off.mean(), 4 / L, standard_error=off.std() / len(off) ** 0.5)


def test_log_evidence_is_the_total_mass(model):
    np.testing.assert_allclose(model.log_evidence(), np.log(WEIGHTS.sum()), rtol=1e-5)
    assert float(replace(model, normalized=True).log_evidence()) == 0


def test_log_prob_by_order_is_exact_for_a_consistent_model(model, probabilities, key):
    found = jax.vmap(lambda x: discrete.log_prob_by_order(model, x, orders=2, key=key))(STATES)
    np.testing.assert_allclose(found, np.log(probabilities), rtol=1e-4)
    part = discrete.log_prob_by_order(model, jnp.array([1, 0, 2, 9]), jnp.array([True, False, True, False]), key=key)
    np.testing.assert_allclose(part, np.log(WEIGHTS[1, :, 2].sum() / WEIGHTS.sum()), rtol=1e-4)


def test_samples_in_random_orders_have_the_law(model, probabilities):
    n = 20_000
    x = jax.jit(jax.vmap(lambda key: discrete.sample_any_order(model, key=key)))(jr.split(jr.key(3), n))
    counts = np.bincount(np.asarray(x) @ K ** np.arange(L - 1, -1, -1), minlength=K**L)
    error = np.sqrt(probabilities * (1 - probabilities) / n) + 1 / n
    assert_within_error(counts / n, probabilities, standard_error=error, times=4.5)


def test_given_variables_are_kept_and_the_others_follow_their_conditional_law(model):
    given, mask = jnp.array([2, 0, 0, 1]), jnp.array([True, False, False, True])
    n = 10_000
    draw = jax.jit(jax.vmap(lambda key: discrete.sample_any_order(model, given, mask, key=key)))
    x = np.asarray(draw(jr.split(jr.key(4), n)))
    assert (x[:, 0] == 2).all() and (x[:, 3] == 1).all()
    joint = WEIGHTS[2, :, :, 1] / WEIGHTS[2, :, :, 1].sum()
    counts = np.bincount(x[:, 1] * K + x[:, 2], minlength=K * K) / n
    assert_within_error(counts, joint.ravel(), standard_error=np.sqrt(joint * (1 - joint) / n).ravel() + 1 / n)


def test_gibbs_refresh_leaves_the_law_alone(model, probabilities):
    n = 20_000
    key_start, key_move = jr.split(jr.key(5))
    start = jnp.asarray(STATES)[jr.choice(key_start, len(STATES), (n,), p=jnp.asarray(probabilities))]
    move = jax.jit(jax.vmap(lambda x, key: discrete.gibbs_refresh(model, x, block=2, key=key)))
    x = np.asarray(move(start, jr.split(key_move, n)))
    changed = (x != np.asarray(start)).sum(1)
    assert changed.max() == 2 and changed.mean() > 0.3
    counts = np.bincount(x @ K ** np.arange(L - 1, -1, -1), minlength=K**L)
    error = np.sqrt(probabilities * (1 - probabilities) / n) + 1 / n
    assert_within_error(counts / n, probabilities, standard_error=error, times=4.5)


def test_any_order_loss_is_the_negative_log_likelihood_in_expectation(model, probabilities):
    x = jnp.array([0, 2, 1, 0])
    losses = jax.vmap(lambda key: discrete.any_order_loss(model, x, key))(jr.split(jr.key(6), 20_000))
    truth = -np.log(WEIGHTS[0, 2, 1, 0] / WEIGHTS.sum())
    assert_within_error(losses.mean(), truth, standard_error=losses.std() / len(losses) ** 0.5)


def test_table_of_an_order_is_what_the_order_samples(key):
    """Of an inconsistent model: sums to 1 for every order, and agrees with the product of conditionals."""
    model = randomised(small(key, 5, 3), key)
    order = jnp.array([3, 0, 4, 2, 1])
    log_p = discrete.order_table(model, order)
    np.testing.assert_allclose(jax.nn.logsumexp(log_p), 0, atol=1e-5)
    states = discrete.all_states(5, 3)
    for place in (0, 100, 242):
        x, total = jnp.asarray(states[place]), 0.0
        for count, i in enumerate(order.tolist()):
            total += float(model.conditionals(x, known_first(order, count))[i, x[i]])
        np.testing.assert_allclose(log_p[place], total, rtol=1e-5)


def test_orders_and_masks(key):
    mask = jnp.array([False, True, False, True, False])
    order = np.asarray(random_order(mask, key=key))
    assert sorted(order) == [0, 1, 2, 3, 4] and set(order[:2]) == {1, 3}
    assert known_first(jnp.asarray(order), 2).tolist() == mask.tolist()
    first = [int(random_order(jnp.zeros(5, bool), key=k)[0]) for k in jr.split(key, 50)]
    assert set(first) == {0, 1, 2, 3, 4}
    seen = symbols(jnp.array([0, 7, 1, 1, -3]), mask & jnp.array([True, False, True, True, True]), 2)
    assert seen.argmax(-1).tolist() == [2, 2, 2, 1, 2]  # what is not known is never looked at


def by_hand(s, coupling, field):
    """Bonds as (site, right) and (site, below), round the torus."""
    rows, columns = s.shape
    bonds = sum(s[i, j] * (s[i, (j + 1) % columns] + s[(i + 1) % rows, j]) for i in range(rows) for j in range(columns))
    return coupling * bonds + field * s.sum()


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (2, 4), (4, 3)])
def test_ising_against_a_sum_over_bonds(shape):
    law = Ising(shape, 0.3, -0.1)
    states = discrete.all_states(law.length, 2)
    values = [by_hand(2.0 * x.reshape(shape) - 1, 0.3, -0.1) for x in states]
    np.testing.assert_allclose(jax.vmap(law)(jnp.asarray(states)), values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(law.log_evidence(), np.log(np.exp(values).sum()), rtol=1e-10)


def test_ising_as_published():
    """x'Jx + b sum x with J = 0.1 x adjacency: the quadratic form counts each bond twice."""
    x = np.random.default_rng(0).integers(0, 2, 16)
    place = np.arange(16).reshape(4, 4)
    adjacency = np.zeros((16, 16))
    for axis, turn in itertools.product((0, 1), (1, -1)):
        adjacency[place.ravel(), np.roll(place, turn, axis).ravel()] = 1
    s = 2 * x - 1
    np.testing.assert_allclose(Ising((4, 4))(jnp.asarray(x)), 0.1 * s @ adjacency @ s + 0.2 * s.sum(), rtol=1e-5)
    np.testing.assert_allclose(Ising((4, 4)).log_evidence(), 12.598503, atol=1e-6)
    np.testing.assert_allclose(Ising((6, 5), 0.0, 0.7).log_evidence(), 30 * np.log(2 * np.cosh(0.7)), rtol=1e-10)


def test_strings_are_counted_without_listing_them():
    law = discrete.Strings(5, 1, temperature=0.5, penalty=1.5)
    states = discrete.all_states(5, 5)
    log_f, value, lone = jax.jit(jax.vmap(lambda x: (law(x), law.value(x), law.lone(x))))(jnp.asarray(states))
    np.testing.assert_allclose(law.log_evidence(), np.log(np.exp(np.asarray(log_f, float)).sum()), rtol=1e-6)
    values, counts = law.counts()
    found = np.zeros(counts.shape)
    np.add.at(found, (np.asarray(value) - values[0], np.asarray(lone)), 1)
    np.testing.assert_array_equal(counts, found)
    np.testing.assert_allclose(law.law().sum(), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "value", "lone"), [("C(N)O", -2, 0), ("()))(", 0, 3), (")CC((", 2, 3), ("((C))", 1, 0)]
)
def test_a_string_by_hand(text, value, lone):
    law = discrete.Strings(5, 4, penalty=3.0)
    x = jnp.array(["CNO()".index(letter) for letter in text])
    assert law.text(x) == text and (int(law.value(x)), int(law.lone(x))) == (value, lone)
    assert float(law(x)) == -abs(value - 4) - 3 * lone


def log_marginal_errors(model, law, n=100):
    """Gaps of m, less its value for the empty set, to the exact log marginals of random parts of typical states."""
    states = jnp.asarray(discrete.all_states(law.length, 2))
    log_f = jax.vmap(law)(states)
    rng = np.random.default_rng(0)
    x = states[jr.categorical(jr.key(0), log_f, shape=(n,))]
    masks = jnp.asarray(np.argsort(rng.random((n, law.length)), 1) < rng.integers(1, law.length, (n, 1)))
    truth = jax.vmap(lambda x, mask: discrete.log_marginal_of_table(log_f, states, x, mask))(x, masks)
    found = jax.vmap(model.log_marginal)(x, masks) - model.log_evidence()
    return np.abs(found - (truth - law.log_evidence()))


@pytest.mark.parametrize("mode", ["anchored", "reinforce"])
def test_energy_fit_of_the_3_by_3_ising_model(mode):
    law, steps = Ising((3, 3)), 500
    probe = learn.Probe("root", lambda model, key: {"m": model.log_evidence()}, every=240)
    net = MarginalMLP(9, 2, width=64, depth=2, key=jr.key(0))
    run = discrete.fit_energy(
        MarginalModel(net, 9, 2),
        law,
        optimizer=learn.adam(3e-3, steps),
        steps=steps,
        chains=128,
        mode=mode,
        probes=[probe],
        key=jr.key(1),
    )
    seen = run.history.probes["root"]
    assert seen.steps.tolist() == [250, 500] and len(run.history) == steps
    np.testing.assert_allclose(seen.values["m"][-1], run.model.log_evidence(), rtol=1e-5)
    log_p = discrete.order_table(run.ema, jnp.arange(9))
    exact = jax.vmap(law)(jnp.asarray(discrete.all_states(9, 2))) - law.log_evidence()
    assert float((jnp.exp(log_p) * (log_p - exact)).sum()) < 0.05
    assert log_marginal_errors(run.ema, law).mean() < 0.12
    if mode == "anchored":
        assert abs(float(run.ema.log_evidence()) - law.log_evidence()) < 0.1
    magnetisation = (2 * run.chains - 1).mean()
    assert abs(float(magnetisation) - (np.exp(exact) @ (2 * discrete.all_states(9, 2) - 1).mean(1))) < 0.12


def test_energy_loss_at_the_solution_is_zero_when_anchored(model, key):
    def log_f(x):
        return jnp.log(jnp.asarray(WEIGHTS))[tuple(x)]

    chains = jnp.asarray(STATES)
    loss, metrics = jax.jit(lambda chains: discrete.energy_loss(model, log_f, chains, key))(chains)
    assert float(loss) < 1e-9
    np.testing.assert_allclose(metrics["log_evidence"], np.log(WEIGHTS.sum()), rtol=1e-5)


def test_reinforce_is_blind_to_a_constant_in_log_f(key):
    """And its first term is the standardised signal's: r has mean 0 and deviation 1, R and the root are added."""
    model = randomised(small(key), key)
    chains = jr.randint(key, (64, 9), 0, 2)
    law = Ising((3, 3))
    found = jax.jit(lambda shift: discrete.energy_loss(model, lambda x: law(x) + shift, chains, key, "reinforce"))
    (loss, metrics), (moved, _) = found(0.0), found(100.0)
    np.testing.assert_allclose(loss, moved, rtol=1e-3)
    m = jax.vmap(model.log_marginal, (0, None))(chains, jnp.ones(9, bool))
    signal = np.asarray(m - jax.vmap(law)(chains))
    first = ((signal - signal.mean()) / signal.std() * m).mean()
    root = (model.log_evidence() - 9 * math.log(2)) ** 2
    np.testing.assert_allclose(loss, first + 4 * (9 * metrics["consistency"] + root), rtol=1e-4)


def test_a_function_that_jax_cannot_trace_is_called_on_the_host(key):
    chains = jr.randint(key, (16, 9), 0, 2)
    host = _traceable(lambda x: float(np.asarray(x).sum()) / 2, 9)
    np.testing.assert_allclose(jax.jit(jax.vmap(host))(chains), chains.sum(1) / 2)
    law = Ising((3, 3))
    assert _traceable(law, 9) is law


def test_fit_of_two_patterns(key):
    """Data of two states: the log marginal is -log 2 as soon as one variable is known, and 0 for none."""
    data = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0]])
    model = small(key, 4, 2, normalized=True)
    run = discrete.fit_marginals(model, data, optimizer=learn.adam(1e-2, 400), steps=400, batch_size=32, key=key)
    for x, mask in ((data[0], [True, False, False, False]), (data[1], [True, True, True, True])):
        np.testing.assert_allclose(run.model.log_marginal(x, jnp.array(mask)), -math.log(2), atol=0.1)
    assert float(run.model.log_evidence()) == 0
    assert abs(float(discrete.log_prob_by_order(run.model, data[0], key=key)) + math.log(2)) < 0.1
    first = jax.vmap(lambda k: discrete.sample_any_order(run.model, data[0], jnp.arange(4) < 1, key=k))(
        jr.split(key, 50)
    )
    assert np.mean(np.all(np.asarray(first) == data[0], 1)) > 0.9


def test_the_second_stage_leaves_the_conditionals_alone(key):
    model = randomised(small(key, 4, 2, normalized=True), key)
    x = jnp.array([0, 1, 1, 0])
    kept = eqx.filter_jit(eqx.filter_grad(discrete.order_consistency_loss))(model, x, key).trunk
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(kept.conditional))
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(kept.marginal))


def test_the_second_stage_starts_from_the_layers_of_the_conditionals(key):
    trunk = randomised(small(key), key).trunk
    warm, other = trunk.warmed().marginal, trunk.conditional
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(warm.layers), jax.tree.leaves(other.layers)))
    assert (warm.input.weight == other.input.weight).all()
    assert (warm.output.weight == trunk.marginal.output.weight).all()
    assert not (warm.input.weight == trunk.marginal.input.weight).any()


def test_order_consistency_of_one_shift(model, key):
    """With every m too large by a, the mean of a^2 / d over d = 1 .. L is left; without, nothing."""
    x, root = jnp.array([2, 0, 1, 1]), float(jnp.log(WEIGHTS.sum()))
    np.testing.assert_allclose(
        discrete.order_consistency_loss(model, x, key), root**2 * np.mean(1 / np.arange(1, L + 1)), rtol=1e-4
    )
    some = jax.jit(jax.vmap(lambda key: discrete.order_consistency_loss(model, x, key, places=3)))(jr.split(key, 4000))
    assert_within_error(some.mean(), root**2 * np.mean(1 / np.arange(1, L + 1)), standard_error=some.std() / 4000**0.5)
    exact = MarginalModel(Table(WEIGHTS / WEIGHTS.sum()), L, K)
    assert float(discrete.order_consistency_loss(exact, x, key)) < 1e-9


@pytest.mark.parametrize(
    ("x", "mask", "words"),
    [
        (jnp.zeros((2, 9), int), jnp.zeros(9, bool), "jax.vmap"),
        (jnp.zeros(9), jnp.zeros(9, bool), "whole numbers"),
        (jnp.zeros(9, int), jnp.zeros(8, bool), "mask must be bool of shape"),
        (jnp.full(9, 2), jnp.ones(9, bool), "must be in 0..1, got 2"),
    ],
)
def test_a_bad_sample_is_refused(x, mask, words):
    with pytest.raises(InputError, match=words):
        check_sample(x, mask, 9, 2)


def test_values_of_unknown_variables_do_not_matter(key):
    model, mask = randomised(small(key), key), jnp.arange(9) < 4
    x = jnp.array([0, 1, 1, 0, 9, -1, 9, 9, 9])
    np.testing.assert_array_equal(model.conditionals(x, mask), model.conditionals(jnp.where(mask, x, 0), mask))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "reinforced"}, "did you mean 'reinforce'"),
        ({"block": 10}, "block must be in 1..9"),
        ({"chains": 0}, "chains must be a positive integer"),
        ({"renew": (2.0, 1)}, "renew must be"),
        ({"log_f": lambda x: x.astype(float)}, "log_f must return a scalar"),
        ({"log_f": lambda x: jnp.log(x.sum() * 0.0)}, "log_f must be finite, got -inf at x"),
    ],
)
def test_a_bad_energy_fit_is_refused(changes, words, key):
    settings = {"log_f": Ising((3, 3)), "optimizer": learn.adam(1e-3, 2), "steps": 2, "chains": 4, "key": key} | changes
    with pytest.raises(InputError, match=words):
        discrete.fit_energy(small(key), settings.pop("log_f"), **settings)


def test_a_loss_that_is_not_finite_stops_the_run(key):
    with pytest.raises(NotFinite, match="loss is not finite at step"):
        discrete.fit_energy(
            small(key), Ising((3, 3)), optimizer=optax.sgd(1e30), steps=10, chains=8, renew=(0.0, 1), key=key
        )


def test_other_bad_input_is_refused(key):
    with pytest.raises(InputError, match="normalized=True"):
        discrete.fit_marginals(small(key), jnp.zeros((4, 9), int), optimizer=learn.adam(1e-3, 2), steps=2, key=key)
    with pytest.raises(InputError, match=r"categories 0\.\.1"):
        discrete.fit_marginals(
            small(key, normalized=True), jnp.full((4, 9), 2), optimizer=learn.adam(1e-3, 2), steps=2, key=key
        )
    with pytest.raises(InputError, match="given and mask go together"):
        discrete.sample_any_order(small(key), jnp.zeros(9, int), key=key)
    with pytest.raises(InputError, match="too many to list"):
        discrete.all_states(30, 2)
    with pytest.raises(InputError, match="at least"):
        Ising((1, 4))
    with pytest.raises(InputError, match="one whole number for each letter"):
        discrete.Strings(4, letters="CN")
    with pytest.raises(InputError, match="temperature must be positive"):
        discrete.Strings(4, temperature=0)
    with pytest.raises(InputError, match="at most 11"):
        Ising((12, 12)).log_evidence()
    with pytest.raises(InputError, match="length"):
        MarginalModel(lambda x: x, 0, 2)
