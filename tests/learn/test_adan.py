"""Adan against the published rule in NumPy, its decay, its restarts, and Nesterov's momentum that it estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn.optim import RestartEvery, RestartWhenMoved, adan, proximal_decay, scale_by_adan, scale_by_nme

RANDOM = np.random.default_rng(0)
START, NOISE = RANDOM.normal(size=(2, 3)), RANDOM.normal(size=(80, 2, 3))


def published(start, grads, rate, *, decay=0.0, prox=True, most=None, kept=(0.98, 0.92, 0.99), eps=1e-8):
    """Every point of the published rule; `rate` is a function of the step."""
    (b1, b2, b3), x, points = kept, start, []
    m, v, n = np.zeros((3, *start.shape))
    grads = [g if most is None else g * min(1, most / (np.sqrt(np.sum(g**2)) + eps)) for g in grads]
    for t, (last, g) in enumerate(zip([grads[0], *grads], grads), 1):
        change = g - last
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * change
        n = b3 * n + (1 - b3) * (g + b2 * change) ** 2
        u = (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + eps)
        eta = rate(t - 1)
        x = (x - eta * u) / (1 + eta * decay) if prox else (1 - eta * decay) * x - eta * u
        points.append(x)
    return np.stack(points)


def points(rule, start, grads):
    """Every point of a rule that is fed with these gradients."""

    @jax.jit
    def run(x, grads):
        def step(carry, g):
            x, state = carry
            updates, state = rule.update(g, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        return jax.lax.scan(step, (x, rule.init(x)), grads)[1]

    return np.asarray(run(jnp.asarray(start), jnp.asarray(grads)))


@pytest.mark.parametrize(("prox", "most"), [(True, None), (False, 1.0)])
def test_the_published_rule(x64, prox, most):
    def rate(step):
        return 0.05 * 0.97**step

    ours = points(adan(rate, weight_decay=0.3, prox=prox, max_grad_norm=most), START, NOISE)
    theirs = published(START, NOISE, rate, decay=0.3, prox=prox, most=most)
    assert np.abs(ours - theirs).max() < 1e-12


def test_two_steps_by_hand(x64):
    """Gradients 1 and 3, so that the coefficient of the difference counts: 0.92, where 0.08 would give 0.0747."""
    b1, b2, b3 = 0.98, 0.92, 0.99
    m, v, n = b1 * 0.02 + 0.02 * 3, 0.08 * 2, b3 * 0.01 + 0.01 * (3 + b2 * 2) ** 2
    u = (m / (1 - b1**2) + b2 * v / (1 - b2**2)) / np.sqrt(n / (1 - b3**2))
    ours = points(scale_then(-1.0), np.zeros(1), np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(ours[:, 0], [-1, -1 - u], rtol=1e-7)


def scale_then(factor):
    return optax.chain(scale_by_adan(), optax.scale(factor))


def test_optax_has_another_coefficient(x64):
    """Fails once optax has b2 where it has 1 - b2: then the words in `adan` and its page must go."""
    theirs = points(optax.adan(0.1, weight_decay=0.0), START, NOISE[:20])
    truth = published(START, NOISE[:20], lambda step: 0.1)
    assert np.abs(theirs - truth).max() > 0.01


def test_decay_alone():
    """Without gradients a weight is divided by 1 + ηλ a step, a masked one stands still, and η is the current one."""
    params = {"weight": jnp.ones(2), "bias": jnp.ones(2)}
    rates = (0.5, 0.25)
    rule = adan(lambda step: jnp.where(step == 0, *rates), weight_decay=2.0, mask=lambda name, leaf: name == "weight")
    state = rule.init(params)
    for _ in rates:
        updates, state = rule.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["weight"], 1 / 2 / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(params["bias"], 1)


def test_restarts(x64):
    """From the restart on the trajectory is that of a fresh optimizer, to the bit; a short way restarts never."""
    rule = adan(0.1, weight_decay=0.0, restart=RestartEvery(7))
    found = points(rule, START, NOISE[:14])
    np.testing.assert_array_equal(found[7:], points(rule, found[6], NOISE[7:14]))
    plain = points(adan(0.1, weight_decay=0.0), START, NOISE[:14])
    np.testing.assert_array_equal(found[:7], plain[:7])
    assert np.abs(found[7] - plain[7]).max() > 1e-3

    one, start = np.full((9, 1), 2.0), np.zeros(1)
    # constant gradients: u = 1, sqrt(n) = 2, so k steps have k Σ = k · k · 2 · 0.1²
    moved = optax.chain(scale_by_adan(restart=RestartWhenMoved((2 * 0.01 * 3.5**2) ** 0.5)), optax.scale(-0.1))
    counts, x, state = [], jnp.asarray(start), moved.init(jnp.asarray(start))
    for g in one:
        updates, state = moved.update(jnp.asarray(g), state, x)
        x = optax.apply_updates(x, updates)
        counts.append(int(state[0].count))
    assert counts == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    never = adan(0.1, weight_decay=0.0, restart=RestartWhenMoved(1e6))
    np.testing.assert_array_equal(points(never, START, NOISE[:14]), plain)


def test_momentum_estimates_nesterov(x64):
    """The points are the look-ahead points of Nesterov's form, if the first difference is the gradient."""
    a, b, eta, kept = np.diag([1.0, 0.3, 0.05]), np.array([1.0, -2.0, 0.5]), 0.4, 0.9
    x, m, ahead = np.ones(3), np.zeros(3), []
    for _ in range(60):
        look = x - eta * kept * m
        ahead.append(look)
        m = kept * m + a @ look - b
        x = x - eta * m

    def ours(first):
        rule = optax.chain(scale_by_nme(kept, first), optax.scale(-eta))
        x, state, found = jnp.ones(3), rule.init(jnp.ones(3)), []
        for _ in range(60):
            found.append(x)
            updates, state = rule.update(a @ x - b, state)
            x = optax.apply_updates(x, updates)
        return np.stack(found)

    assert np.abs(ours("gradient") - ahead).max() < 1e-12
    assert np.abs(ours("zero") - ahead).max() > 0.1


def test_plumbing():
    """Accumulated gradients are one gradient, a step that is skipped leaves no trace, low precision is kept."""
    rule = adan(0.1, weight_decay=0.1)
    grads = jnp.asarray(NOISE[:6], jnp.float32)
    start = jnp.asarray(START, jnp.float32)
    every_other = points(optax.MultiSteps(rule, 2), start, grads)
    np.testing.assert_allclose(every_other[1::2], points(rule, start, (grads[::2] + grads[1::2]) / 2), rtol=1e-5)
    holed = jnp.concatenate([grads[:2], jnp.full_like(grads[:1], jnp.nan), grads[2:]])
    found = points(optax.apply_if_finite(rule, 3), start, holed)
    np.testing.assert_allclose(np.delete(found, 2, 0), points(rule, start, grads), rtol=1e-6)
    state = scale_by_adan(mu_dtype=jnp.bfloat16).init({"w": start.astype(jnp.bfloat16)})
    assert state.m["w"].dtype == state.previous["w"].dtype == jnp.bfloat16 and state.n["w"].dtype == jnp.float32


def test_bad_input():
    x = jnp.ones(2)
    for make, match in (
        (lambda: adan(0.1, b2=1.0), r"b2 must be in \[0, 1\), got 1.0"),
        (lambda: adan(0.1, eps=0.0), "eps must be positive"),
        (lambda: adan(0.1, weight_decay=-1.0), "weight_decay must be >= 0"),
        (lambda: adan(-0.1), "learning_rate must be >= 0"),
        (lambda: adan(0.1, max_grad_norm=0.0), "max_grad_norm must be positive"),
        (lambda: RestartEvery(0), "k must be >= 1"),
        (lambda: RestartWhenMoved(0.0), "radius must be positive"),
        (lambda: adan(0.1).init(x + 1j), "adan moves real floating numbers"),
        (lambda: adan(0.1, mask=lambda: True).init(x), "mask must be a function"),
        (lambda: proximal_decay(0.1, 0.1).update(x, optax.EmptyState()), "proximal_decay needs params"),
    ):
        with pytest.raises(InputError, match=match):
            make()
