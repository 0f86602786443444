"""Matrix sensing against closed forms: adjoints, gradients, scalar recursions, rebalanced products and known rates."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn import fit
from kinema.learn.factorized import (
    EntrySensing,
    FactoredLoss,
    GaussianSensing,
    IdentitySensing,
    Pair,
    SymmetricLoss,
    balance,
    descend,
    fit_rate,
    gaussian_sensing,
    low_rank,
    product,
    rebalance,
    rebalance_once,
    scaled_gd,
    singular_values,
    start_asymmetric,
    start_symmetric,
)

RATE = 0.1
pytestmark = pytest.mark.usefixtures("x64")


def some_sensing():
    mask = np.arange(12).reshape(4, 3) % 3 != 1
    return {
        "identity": IdentitySensing((4, 3)),
        "gaussian": gaussian_sensing(20, 4, 3, key=jr.key(1)),
        "entries": EntrySensing(mask),
    }


def test_sensing_has_its_adjoint(key):
    """<A(M), y> = <M, A*(y)>; A*A is the identity on average."""
    matrix = jr.normal(key, (4, 3))
    for sensing in some_sensing().values():
        seen = sensing.forward(matrix)
        y = jr.normal(jr.key(2), seen.shape)
        assert np.isclose(seen @ y, jnp.sum(matrix * sensing.adjoint(y)), rtol=1e-12)
    entries = some_sensing()["entries"]
    again = entries.adjoint(entries.forward(matrix))
    np.testing.assert_allclose(again, np.where(entries.mask, 1.5 * matrix, 0), rtol=1e-12)
    many = gaussian_sensing(20_000, 4, 3, key=jr.key(3))
    np.testing.assert_allclose(many.rows.T @ many.rows, np.eye(12), atol=5 * (2 / 20_000) ** 0.5)


def test_gradients_and_compression(key):
    """∇ is (R + Rᵀ) X / 2, and (R G, Rᵀ F), R = A*(A(M) - y); the compressed problem has the same."""
    sensing = gaussian_sensing(60, 4, 4, key=key)
    y = sensing.forward(low_rank(4, 4, [1.0, 0.5], key=jr.key(1)))
    x, (f, g) = start_symmetric(4, 3, 0.5, key=jr.key(2)), start_asymmetric(4, 4, 3, 0.5, key=jr.key(3))
    slopes = jax.jit(jax.grad(lambda loss, params: loss(params)[0], argnums=1))
    for sensed, seen in ((sensing, y), sensing.compressed(y)):
        few = sensing.adjoint(sensing.forward(x @ x.T) - y)
        np.testing.assert_allclose(slopes(SymmetricLoss(sensed, seen), x), (few + few.T) @ x / 2, rtol=1e-9)
        few = sensing.adjoint(sensing.forward(f @ g.T) - y)
        found = slopes(FactoredLoss(sensed, seen), (f, g))
        np.testing.assert_allclose(found[0], few @ g, rtol=1e-9)
        np.testing.assert_allclose(found[1], few.T @ f, rtol=1e-9)
    assert len(sensing.compressed(y)[1]) == 16


def test_surplus_directions_follow_their_recursion():
    """All entries seen, a target of rank 1: a surplus column obeys s <- s (1 - η s²), hence an error of 1 / 2ηT."""
    target = jnp.diag(jnp.array([1.0, 0.0]))
    loss = SymmetricLoss(IdentitySensing((2, 2)), target.ravel(), target)
    run = descend(loss, jnp.diag(jnp.array([1.0, 0.5])), optimizer=optax.sgd(RATE), steps=4000, every=10)
    s, truth = 0.5, []
    for _ in range(4001):
        truth.append(s * s)
        s *= 1 - RATE * s * s
    np.testing.assert_allclose(run.metrics["error"], truth[::10], rtol=1e-11)
    power = fit_rate(run.steps, run.metrics["error"], kind="power", low=0.0, high=1.0, after=2000)
    assert abs(power.slope + 1) < 0.02 and power.stderr < 0.01 and power.window == (2000, 4000)


def test_descent_with_surplus_columns(key):
    """Imbalance makes the fall exponential and is kept to O(η²); without it the fall is a power of the step."""
    target = low_rank(4, 4, [1.0], symmetric=True, key=key)
    loss = FactoredLoss(IdentitySensing((4, 4)), target.ravel(), target)

    def errors(start, optimizer):
        return descend(
            loss, start, optimizer=optimizer, steps=1000, every=10, watch=lambda p: singular_values(product(p))
        )

    f, g = start_asymmetric(4, 4, 2, 0.5, rank=1, key=jr.key(1))
    plain = optax.sgd(RATE)
    imbalanced, balanced = errors((f, g), plain), errors((f, f), plain)
    assert fit_rate(imbalanced.steps, imbalanced.metrics["error"]).slope < -0.01
    assert imbalanced.metrics["error"][-1] < 1e-6 < 1e-4 < balanced.metrics["error"][-1]
    drift = jnp.abs(balance(*imbalanced.params) - balance(f, g)).max()
    assert 0 < drift < 5 * RATE**2
    np.testing.assert_allclose(imbalanced.watched[-1], [1, 0, 0, 0], atol=1e-5)
    # rebalanced once, G contracts by 1 - ηβ² a step
    once = errors((f, g), optax.chain(plain, rebalance_once(0.9)))
    assert np.isclose(fit_rate(once.steps, once.metrics["error"]).slope, np.log(1 - RATE * 0.81), rtol=0.1)


def test_scaled_gd_does_not_see_the_condition_number():
    """From a times the solution on both sides: a <- a - η (a² - 1) / a, whatever the singular values; so for X."""
    values, a = jnp.array([1.0, 1e-3]), 1.5
    root = jnp.diag(values**0.5)
    loss = FactoredLoss(IdentitySensing((2, 2)), jnp.diag(values).ravel())
    pair = descend(loss, (a * root, a * root), optimizer=scaled_gd(RATE), steps=5).params
    square = SymmetricLoss(loss.sensing, loss.y)
    one = descend(square, a * root, optimizer=scaled_gd(RATE), steps=5).params
    for _ in range(5):
        a -= RATE * (a**2 - 1) / a
    for factor in (*pair, one):
        np.testing.assert_allclose(factor, a * root, rtol=1e-10, atol=1e-15)


def test_rebalancing_keeps_the_product(key):
    f, g = jr.normal(key, (6, 3)), jr.normal(jr.key(1), (4, 3))
    for side in ("left", "right"):
        a, b = rebalance(f, g, 0.7, side)
        np.testing.assert_allclose(a @ b.T, f @ g.T, atol=1e-13)
        one = a if side == "left" else b
        np.testing.assert_allclose(one.T @ one, 0.49 * np.eye(3), atol=1e-13)
    thin = f.at[:, 2].set(0)
    a, b = rebalance(thin, g, 0.7)
    np.testing.assert_allclose(a @ b.T, thin @ g.T, atol=1e-13)


def test_rebalancing_inside_an_optimizer(key):
    """Once, at its step, on the named pair as it will be after that step; Gᵀ as LoRA has it."""
    params = {"a": jr.normal(key, (2, 5)), "b": jr.normal(jr.key(1), (6, 2)), "c": jnp.ones(3)}
    rule = optax.chain(optax.sgd(0.1), rebalance_once(0.5, pairs=[Pair("b", "a", transposed=True)], at=1))
    state, grads = rule.init(params), jax.tree.map(jnp.ones_like, params)
    for step in range(3):
        before = params
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        plain = jax.tree.map(lambda p: p - 0.1, before)
        np.testing.assert_allclose(params["b"] @ params["a"], plain["b"] @ plain["a"], atol=1e-12)
        assert np.allclose(params["c"], plain["c"]) and np.allclose(params["b"], plain["b"]) == (step != 1)
        if step == 1:
            np.testing.assert_allclose(params["b"].T @ params["b"], 0.25 * np.eye(2), atol=1e-12)


def test_fit_trains_the_same_losses(key):
    """`learn.fit` and `descend` come to the same factors; a trigger by the loss works in both."""
    target = low_rank(4, 4, [1.0], key=key)
    loss = FactoredLoss(IdentitySensing((4, 4)), target.ravel(), target)
    start = start_asymmetric(4, 4, 2, 0.5, key=jr.key(1))
    rule = optax.chain(optax.sgd(RATE), rebalance_once(0.5, below=0.1))
    run = fit(start, loss, optimizer=rule, steps=200, chunk=200, key=key, progress=False)
    ours = descend(loss, start, optimizer=rule, steps=200, every=100)
    np.testing.assert_allclose(run.model[0], ours.params[0], rtol=1e-9)
    np.testing.assert_allclose(run.history.metrics["error"][[0, 100]], ours.metrics["error"][:2], rtol=1e-9)
    assert bool(run.state.opt_state[1].done)


def test_fits_of_rates():
    steps = np.arange(1, 2001)
    found = fit_rate(steps, 3 * 0.98**steps)
    assert np.isclose(found.slope, np.log(0.98)) and found.stderr < 1e-12 and found.window[0] == 283
    noisy = 5e-3 * 0.99**steps * np.exp(0.1 * np.random.default_rng(0).standard_normal(2000))
    found = fit_rate(steps, noisy)
    assert abs(found.slope - np.log(0.99)) < 4 * max(found.stderr, 1e-5)
    floored = np.maximum(1e-2 * 0.9**steps, 1e-16)
    assert np.isclose(fit_rate(steps, floored).slope, np.log(0.9))


def test_bad_input_is_refused(key):
    square = IdentitySensing((2, 2))
    for bad, message in [
        (lambda: gaussian_sensing(0, 2, 2, key=key), "m must be at least 1 measurement, got 0"),
        (lambda: IdentitySensing((0, 2)), r"sizes of at least 1, got \(0, 2\)"),
        (lambda: GaussianSensing(jnp.ones((3, 5)), (2, 2)), r"shape \(m >= 1, 4\), got \(3, 5\)"),
        (lambda: EntrySensing(np.zeros((2, 2), bool)), "nothing to measure"),
        (lambda: SymmetricLoss(IdentitySensing((2, 3)), jnp.ones(6)), "use FactoredLoss"),
        (lambda: start_symmetric(4, 1, 0.1, rank=2, key=key), "rank 2 of the target, got 1"),
        (lambda: low_rank(2, 3, [1.0], symmetric=True, key=key), "do not make a symmetric 2 x 3 matrix"),
        (lambda: rebalance(jnp.ones((3, 2)), jnp.ones((3, 2)), 0.0), "beta must be positive, got 0.0"),
        (lambda: rebalance(jnp.ones((1, 2)), jnp.ones((3, 2)), 1.0), "k <= n1"),
        (lambda: rebalance_once(0.5, below=None), "needs a step `at` or a positive `below`"),
        (lambda: rebalance_once(0.5).init({"f": jnp.ones((3, 2))}), "unknown leaf '0'"),
        (lambda: descend(FactoredLoss(square, jnp.ones(4)), None, optimizer=optax.sgd(1), steps=5, every=2), "divide"),
        (lambda: scaled_gd(0.1, -1.0), "damping >= 0"),
        (lambda: scaled_gd(0.1).update(jnp.ones(2), None, jnp.ones(2)), r"one matrix X or a pair"),
        (lambda: fit_rate([1, 2, 3], [1.0, 0.5, 0.2]), "only 0 errors lie in"),
        (lambda: fit_rate([1, 2], [1.0, 0.5, 0.2]), r"one shape \(records,\)"),
    ]:
        with pytest.raises(InputError, match=message):
            bad()
