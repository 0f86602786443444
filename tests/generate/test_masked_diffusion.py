"""Masked diffusion of a joint law whose exact network, bound and samplers' laws are sums."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from scipy import stats

from kinema import learn
from kinema.errors import InputError
from kinema.generate.discrete import (
    all_states,
    random_order,
)
from kinema.generate.discrete.first_hitting import reveal_rounds, sample_masked
from kinema.generate.discrete.masked_exact import ancestral_law, law_of_plans, parallel_law, plans, table_model
from kinema.generate.discrete.masked_networks import masked_mlp, masked_transformer
from kinema.generate.discrete.masking import MaskedModel, MaskedPath, masked_loss, masked_nelbo
from kinema.generate.discrete.truncation import entropy

L, K, N = 4, 3, 20_000
JOINT = np.random.default_rng(0).dirichlet(np.full(K**L, 0.3)).reshape((K,) * L)
STATES, P = all_states(L, K), JOINT.ravel()
MASKS = np.array(list(itertools.product([False, True], repeat=L)))


@pytest.fixture(scope="module")
def model():
    return table_model(JOINT)


def counts(x):
    return np.bincount(np.asarray(x) @ K ** np.arange(L - 1, -1, -1), minlength=K**L)


def draw(model, key, method="first_hitting", steps=None, **known):
    """One program for each method and steps: what a test does not look at is saved all the same."""
    save = "all" if method == "first_hitting" else "last"
    return sample_masked(model, N, key=key, method=method, steps=steps, save=save, **known)


def follows(x, law):
    """Pearson's test at one in ten thousand, rare states together."""
    seen, wanted = counts(x), np.asarray(law) * len(x) / np.sum(law)
    if seen[wanted == 0].any():
        return False
    rare = wanted < 5
    seen, wanted = (np.append(one[~rare], one[rare].sum() + 1e-9) for one in (seen, wanted))
    return stats.chisquare(seen, wanted).pvalue > 1e-4


def test_the_table_holds_every_conditional(model):
    x, mask = jnp.array([2, 0, 1, 1]), jnp.array([False, True, False, True])
    part = JOINT[:, 0, :, 1]
    found = np.exp(model.conditionals(x, mask))
    np.testing.assert_allclose(found[0], part.sum(1) / part.sum(), rtol=1e-5)
    np.testing.assert_allclose(found[2], part.sum(0) / part.sum(), rtol=1e-5)
    np.testing.assert_allclose(model.conditionals(x, mask, jnp.array([2])), np.log(found)[2:3], rtol=1e-6)
    hidden = jnp.array([7, 0, -3, 1])  # what is not known is never looked at
    np.testing.assert_array_equal(model.conditionals(hidden, mask), model.conditionals(x, mask))


def test_first_hitting_is_exact_and_the_others_follow_their_plans(model, key):
    """One law for each method by enumeration; the wrong one is refused by the same test."""
    made = {
        ("first_hitting", None): P,
        ("parallel", 2): parallel_law(model, 2),
        ("ancestral", 3): ancestral_law(model, 3),
        ("cached", 40): ancestral_law(model, 40),
    }
    calls = {"first_hitting": 4, "parallel": 2, "ancestral": 3, "cached": 4}
    for (method, steps), law in made.items():
        samples = draw(model, key, method, steps)
        assert samples.x.shape == (N, L) and samples.nfe == samples.passes == calls[method]
        assert follows(samples.x, law), method
        assert follows(samples.x, P) == (method == "first_hitting") or steps == 40


def test_laws_of_plans(model):
    """75 ways to reveal four variables; in sequence they give the joint, at once the product of marginals."""
    assert len(plans(L)) == 75
    laws = law_of_plans(model)
    np.testing.assert_allclose(laws.sum(0), 1, rtol=1e-5)
    in_sequence = plans(L).max(1) == L - 1
    assert in_sequence.sum() == math.factorial(L)
    np.testing.assert_allclose(laws[:, in_sequence], np.tile(P[:, None], 24), atol=1e-6)
    sites = np.stack([JOINT.sum(tuple(j for j in range(L) if j != i)) for i in range(L)])
    product = sites[np.arange(L), STATES].prod(1)
    for law in (ancestral_law(model, 1), parallel_law(model, 1)):
        np.testing.assert_allclose(law, product, atol=1e-6)
    apart = [np.abs(ancestral_law(model, n) - P).sum() / 2 for n in (32, 64, 128)]
    np.testing.assert_allclose(np.divide(apart[:-1], apart[1:]), 2, rtol=0.02)  # first order
    np.testing.assert_allclose(ancestral_law(model, 10**6), P, atol=1e-5)


def test_known_variables_are_kept_and_save_calls(model, key):
    given = jnp.tile(jnp.array([0, 1, 2, 0]), (N, 1))
    mask = jnp.tile(jnp.array([False, True, False, True]), (N, 1))
    law = np.where((STATES[:, [1, 3]] == [1, 0]).all(1), P, 0)
    law /= law.sum()
    both = np.array([[law[STATES[:, i] == k].sum() for k in range(K)] for i in (0, 2)])
    product = np.where(law > 0, both[0][STATES[:, 0]] * both[1][STATES[:, 2]], 0)
    for method, steps in (("first_hitting", None), ("cached", 40)):
        samples = draw(model, key, method, steps, given=given, mask=mask)
        assert samples.nfe == 2
        np.testing.assert_array_equal(samples.x[:, [1, 3]], given[:, [1, 3]])
        wanted = law if method == "first_hitting" else (39 * law + product) / 40  # one in 40 in the same step
        assert follows(samples.x, wanted)
    whole = draw(model, key, given=given, mask=jnp.ones((N, L), bool))
    assert whole.nfe == 0
    np.testing.assert_array_equal(whole.x, given)


def test_the_road_never_changes_what_is_known(model, key):
    samples = draw(model, key)
    road, times = np.asarray(samples.path["x"]), np.asarray(samples.path["t"])
    assert road.shape == (N, L, L)
    np.testing.assert_array_equal((road < K).sum(2), np.tile(np.arange(1, L + 1), (N, 1)))
    np.testing.assert_array_equal(road[:, -1], samples.x)
    for before, after in itertools.pairwise(road.transpose(1, 0, 2)):
        assert (after == before)[before < K].all()
    first = (road < K).argmax(1)  # the round of each variable
    np.testing.assert_array_equal(np.argsort(times), np.argsort(first))
    # a sample depends on key and place alone
    np.testing.assert_array_equal(sample_masked(model, 7, key=key, batch_size=2).x, samples.x[:7])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_event_times_obey_the_first_hitting_rule(schedule, key):
    """(1 - alpha(next)) / (1 - alpha(now)) = u^(1 / n), u uniform and independent; mean 1 - alpha = n / (L + 1)."""
    path = MaskedPath(schedule)
    times = np.sort(jax.vmap(lambda k: path.hitting_times(L, key=k))(jr.split(key, N)), 1)
    left = 1 - np.asarray(path.alpha(jnp.asarray(times)), np.float64)
    n = np.arange(L, 0, -1)
    spread = np.sqrt(n * (L + 1 - n) / (L + 2)) / (L + 1)
    assert_within_error(left.mean(0), n / (L + 1), standard_error=spread / N**0.5)
    u = (left / np.append(np.ones((N, 1)), left[:, :-1], 1)) ** n
    assert all(stats.kstest(column, "uniform").pvalue > 1e-4 for column in u.T)
    assert np.abs(np.corrcoef(u.T) - np.eye(L)).max() < 4 / N**0.5
    np.testing.assert_allclose(path.time(path.alpha(jnp.linspace(0, 1, 9))), np.linspace(0, 1, 9), atol=1e-6)


def test_rounds():
    times, mask = jnp.array([0.95, 0.1, 0.2, 0.26, 0.15]), jnp.array([False, False, True, False, False])
    order, rounds = reveal_rounds(times, mask, "cached", 10)
    assert order.tolist() == [2, 1, 4, 3, 0]
    assert jnp.where(mask, -1, rounds).tolist() == [2, 0, -1, 1, 0]
    for steps in (2, 3, 4):  # groups of equal size, up to one
        _, rounds = reveal_rounds(times, jnp.zeros(5, bool), "parallel", steps)
        sizes = np.bincount(rounds)
        assert len(sizes) == steps and np.ptp(sizes) <= 1


def test_bound_is_the_entropy_and_has_no_schedule(model, key):
    """Against sum_masked H(x_i | x_S), from entropies of marginals: over counts, over t, and by both estimators."""

    def known_entropy(mask):
        return entropy(JOINT.sum(tuple(np.flatnonzero(~mask))).ravel())

    one = np.eye(L, dtype=bool)
    sums = np.array([sum(known_entropy(m | one[i]) - known_entropy(m) for i in np.flatnonzero(~m)) for m in MASKS])
    known = MASKS.sum(1)
    by_count = sum(sums[known == d].mean() / (L - d) for d in range(L))
    np.testing.assert_allclose(by_count, entropy(P), rtol=1e-9)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for schedule in ("linear", "cosine"):
        path, t = MaskedPath(schedule), jnp.asarray((nodes + 1) / 2)
        alpha = np.asarray(path.alpha(t), np.float64)[:, None]
        law = alpha**known * (1 - alpha) ** (L - known)
        np.testing.assert_allclose(weights / 2 * jax.vmap(path.unmask_rate)(t) @ (law @ sums), by_count, rtol=1e-3)

    x = jnp.asarray(STATES[np.random.default_rng(0).choice(K**L, N, p=P)])

    @jax.jit
    def estimates(keys):
        by_count = jax.vmap(lambda x, key: masked_nelbo(model, x, key, at=1))(x, keys)
        by_time = jax.vmap(lambda x, key: masked_nelbo(model, x, key, estimator="time", at=0.4))(x, keys)
        return by_count, by_time, masked_loss(model, x, key)[0]

    *found, loss = estimates(jr.split(key, N))
    truth = L / 3 * sums[known == 1].mean(), 0.4**known * 0.6 ** (L - known) @ sums / 0.6
    for estimate, wanted in zip(found, truth):
        assert_within_error(estimate.mean(), wanted, standard_error=estimate.std() / N**0.5)
    assert_within_error(loss, entropy(P), standard_error=3 / N**0.5)


def test_temperature_and_top_p(key):
    """A single variable at 1/2 follows p^2, cut to the two likeliest."""
    p = np.array([0.6, 0.3, 0.1])
    x = sample_masked(table_model(p), N, key=key, temperature=0.5, top_p=0.9).x[:, 0]
    assert stats.chisquare(np.bincount(x), N * p[:2] ** 2 / (p[:2] ** 2).sum()).pvalue > 1e-4


def test_networks_start_uniform_and_have_their_rows_apart(key):
    x, mask = jnp.array([0, 1, 1, 0]), jnp.array([True, False, False, True])
    for model in (
        masked_mlp(4, 2, width=8, depth=1, key=key),
        masked_transformer(4, 2, width=8, depth=1, heads=2, key=key),
    ):
        values, static = eqx.partition(model, eqx.is_array)

        @jax.jit
        def rows_of(values, static=static):
            model = eqx.combine(values, static)
            return model.conditionals(x, mask), model.conditionals(x, mask, jnp.array([2, 1]))

        np.testing.assert_allclose(rows_of(values)[0], -math.log(2), rtol=1e-5)
        moved = jax.tree.map(lambda leaf: leaf + 0.1 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), values)
        rows, picked = rows_of(moved)
        assert np.abs(rows[1] - rows[2]).max() > 1e-3
        np.testing.assert_allclose(picked, rows[jnp.array([2, 1])], rtol=1e-5)


def test_a_perceptron_learns_two_patterns(key):
    """The bound of two patterns is log 2; of the uniform law 4 log 2."""
    data = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0]])
    model = masked_mlp(4, 2, width=16, depth=1, key=key)
    run = learn.fit(model, masked_loss, data, optimizer=learn.adam(1e-2, 300), steps=300, batch_size=32, key=key)
    np.testing.assert_allclose(run.history.loss[0], 4 * math.log(2), rtol=1e-5)
    np.testing.assert_allclose(run.history.loss[-50:].mean(), math.log(2), atol=0.07)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"method": "first_hit"}, "did you mean 'first_hitting'"),
        ({"steps": 3}, "first_hitting takes as many steps as variables, 4"),
        ({"method": "ancestral"}, "ancestral needs steps"),
        ({"method": "parallel", "steps": 5}, "at most a step a variable, 4"),
        ({"save": "some"}, "save must be"),
        ({"temperature": -1.0}, "temperature must be positive, or 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"given": jnp.zeros((2, L), int)}, "given and mask go together, got only given"),
        ({"given": jnp.zeros((3, L), int), "mask": jnp.ones((3, L), bool)}, "leading axis of n=2"),
        ({"given": jnp.full((2, L), K), "mask": jnp.ones((2, L), bool)}, "must be in 0..2, got 3"),
        ({"given": jnp.zeros((2, 5), int), "mask": jnp.ones((2, 5), bool)}, r"shape \(4,\), got int32 of shape \(5,\)"),
    ],
)
def test_a_bad_draw_is_refused(model, key, changes, words):
    with pytest.raises(InputError, match=words):
        sample_masked(model, **({"n": 2, "key": key} | changes))


def test_other_bad_input_is_refused(model, key):
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        MaskedPath("cosin")
    with pytest.raises(InputError, match="estimator must be"):
        masked_nelbo(model, jnp.zeros(L, int), key, estimator="times")
    with pytest.raises(InputError, match="axes of one length"):
        table_model(np.ones((2, 3)))
    with pytest.raises(InputError, match="categories must be a positive"):
        MaskedModel(lambda x: x, 4, 0)
    with pytest.raises(InputError, match=r"length must be in 1\.\.6"):
        plans(7)
    with pytest.raises(InputError, match="steps must be at least 1"):
        ancestral_law(model, 0)
    with pytest.raises(InputError, match=r"steps must be in 1\.\.4"):
        parallel_law(model, 5)


def test_sampling_in_a_random_order_is_first_hitting(key):
    """Times in order are a random order: what `sample_any_order` reveals by."""
    path = MaskedPath()
    first = jax.vmap(lambda k: jnp.argsort(path.hitting_times(3, key=k)) @ jnp.array([9, 3, 1]))(jr.split(key, N))
    other = jax.vmap(lambda k: random_order(jnp.zeros(3, bool), key=k) @ jnp.array([9, 3, 1]))(jr.split(key, N))
    for found in (first, other):
        assert stats.chisquare(np.unique(found, return_counts=True)[1]).pvalue > 1e-4
