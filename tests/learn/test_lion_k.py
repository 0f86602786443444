"""Lion-K against optax's Lion, SGD and Muon, and what it does with decay, masks and leaves of its own K."""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn import fit
from kinema.learn.optim import (
    L1,
    L2,
    GroupL2,
    Huber,
    L2Squared,
    LionSettings,
    Lp,
    Nuclear,
    TopK,
    lion_k,
    scale_by_lion_k,
)
from kinema.learn.optim.lion_k import convex_of
from kinema.motion import FunctionLaw, integrate, trees
from kinema.verify import lyapunov

PARAMS = {"bias": jnp.linspace(-1.0, 1.0, 5), "weight": jnp.linspace(-2.0, 2.0, 20).reshape(4, 5)}


def run(rule, steps=4, params=PARAMS):
    """(parameters, state) after gradients drawn at random."""
    state = rule.init(params)
    for step in range(steps):
        updates, state = rule.update(trees.normal_like(jr.key(step), params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("options", [{}, {"mask": {"bias": False, "weight": True}}, {"mu_dtype": jnp.bfloat16}])
def test_l1_is_optax_lion_to_the_bit(options):
    """Parameters and the state's leaves; and the programs are the same, so they are as fast."""
    for rate in (0.03, optax.cosine_decay_schedule(0.03, 10)):
        ours, theirs = lion_k(rate, L1(), weight_decay=0.7, **options), optax.lion(rate, weight_decay=0.7, **options)
        assert equal(run(ours), run(theirs))
    program = [str(jax.make_jaxpr(rule.update)(PARAMS, rule.init(PARAMS), PARAMS)) for rule in (ours, theirs)]
    assert program[0] == program[1]


@pytest.mark.usefixtures("x64")
def test_the_published_lion():
    """Lion's equations in NumPy, step by step: the weights decay by 1 - ηλ, then move by η along the sign."""
    random, b1, b2, decay = np.random.default_rng(0), 0.9, 0.99, 0.7
    x, grads = random.normal(size=(3, 4)), random.normal(size=(100, 3, 4))
    rule, m, ours = lion_k(lambda step: 0.05 * 0.97**step, L1(), weight_decay=decay), 0, jnp.asarray(x)
    state, update = rule.init(ours), jax.jit(rule.update)
    for step, g in enumerate(grads):
        rate = 0.05 * 0.97**step
        x = (1 - rate * decay) * x - rate * np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        updates, state = update(jnp.asarray(g), state, ours)
        ours = optax.apply_updates(ours, updates)
        assert np.abs(ours - x).max() < 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", [Huber(0.5), Lp(3.0)], ids=lambda k: type(k).__name__)
def test_the_flow_falls_by_its_closed_form(k):
    """As steps go to 0 Lion-K becomes a flow; γ H falls along it at a known rate, which is integrated beside the state.

    m' = -γ (∇f + m),  x' = ∇K(p) - λx,  p = m - εγ (∇f + m)            γ = (1 - b2) / η,  ε = η (1 - b1) / (1 - b2)
    γ H' = -(λ + γ) / (1 + ελ) <p - ∇K*(λx), ∇K(p) - λx> - (1 - εγ) / (ε + ε²λ) <p - m, ∇K(p) - ∇K(m)>
    """
    eta, b1, b2, decay = 0.02, 0.9, 0.98, 0.8
    gamma, epsilon = (1 - b2) / eta, eta * (1 - b1) / (1 - b2)
    settings, curvature = LionSettings(eta, k, b1, b2, decay, True), jnp.array([3.0, 1.0, 0.3])

    def loss(x):
        return jnp.sum(curvature * (x - jnp.array([2.0, -0.3, 0.6])) ** 2) / 2

    def h(state):
        momentum = optax.ScaleByLionState(jnp.zeros((), int), -state["m"])
        return gamma * lyapunov(settings, loss(state["x"]), state["x"], momentum).value

    def drift(t, state, args):
        x, m = state["x"], state["m"]
        pull = gamma * (jax.grad(loss)(x) + m)
        p = m - epsilon * pull
        speed, bend = k.grad(p) - decay * x, k.grad(p) - k.grad(m)
        rate = (decay + gamma) * jnp.vdot(p - jax.grad(k.conjugate)(decay * x), speed)
        rate += (1 - epsilon * gamma) / epsilon * jnp.vdot(p - m, bend)
        return {"x": speed, "m": -pull, "h": -rate / (1 + epsilon * decay)}

    start = {"x": jnp.array([-0.9, 0.5, 1.1]), "m": jnp.array([1.0, -2.0, 0.2])}
    start |= {"h": h(start)}
    states = integrate(FunctionLaw(drift), start, jnp.linspace(0, 12, 121), rtol=1e-10, atol=1e-12).states
    values = jax.vmap(h)(states)
    np.testing.assert_allclose(states["h"], values, atol=1e-7 * values[0])
    assert np.all(np.diff(values) < 0) and values[0] - values[-1] > 1


def test_squared_norm_is_momentum_with_decay():
    """b1 = b2 = b: x <- (1 - ηλ) x - η (1 - b) Σ b^j g."""
    rule = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    heavy = optax.chain(optax.ema(0.8, debias=False), rule)
    ours, _ = run(lion_k(0.1, L2Squared(), b1=0.8, b2=0.8, weight_decay=0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, run(heavy)[0])


def test_nuclear_is_muon():
    """b1 = b2 from the first step; b1 = b2² with its look-ahead, once the correction of its start has died away."""
    weight = PARAMS["weight"]
    grads = jr.normal(jr.key(3), (150, *weight.shape))

    def directions(rule):
        def step(state, g):
            updates, state = rule.update(g, state)
            return state, updates

        return jax.lax.scan(step, rule.init(weight), grads)[1]

    ours, muon = scale_by_lion_k(Nuclear(steps=5), 0.9, 0.9), optax.contrib.scale_by_muon(beta=0.9, nesterov=False)
    np.testing.assert_allclose(directions(ours), directions(muon), rtol=1e-3, atol=1e-4)
    ahead, muon = scale_by_lion_k(Nuclear(steps=5), 0.81, 0.9), optax.contrib.scale_by_muon(beta=0.9)
    late, truth = directions(ahead)[-20:], directions(muon)[-20:]
    np.testing.assert_allclose(late, truth, rtol=1e-3, atol=1e-4)


def test_implicit_decay():
    """x <- (x - η ∇K) / (1 + ηλ), also by a schedule and on unmasked leaves only."""
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    for rate in (0.1, lambda count: 0.1 / (1 + count)):
        rule = lion_k(rate, L1(), weight_decay=0.5, implicit=True, mask="weight")
        updates, state = rule.update(grads, rule.init(PARAMS), PARAMS)
        np.testing.assert_allclose(PARAMS["weight"] + updates["weight"], (PARAMS["weight"] - 0.1) / 1.05, rtol=1e-5)
        np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-6)
    updates, _ = rule.update(grads, state, PARAMS)
    np.testing.assert_allclose(PARAMS["weight"] + updates["weight"], (PARAMS["weight"] - 0.05) / 1.025, rtol=1e-5)


def test_a_k_for_each_leaf():
    """One K falls back to L1 on vectors; a function's choice stands as it is and is refused where it cannot."""
    assert [type(k) for k in convex_of(Nuclear(), PARAMS)] == [L1, Nuclear]
    chosen = convex_of(lambda name, leaf: GroupL2(0) if name == "weight" else L2(), PARAMS)
    assert chosen == [L2(), GroupL2(0)]
    updates, _ = scale_by_lion_k(lambda name, leaf: L2(), 0.0, 0.5).update(
        PARAMS, scale_by_lion_k(L2(), 0.0, 0.5).init(PARAMS)
    )
    assert all(np.isclose(np.linalg.norm(one), 1) for one in updates.values())
    for k, message in [
        (lambda name, leaf: Nuclear(), "leaf bias: Nuclear needs 2 axes or more, the leaf has 1"),
        (TopK(6), r"leaf bias: TopK\(k=6\) needs 6 numbers or more, the leaf has 5"),
        (lambda name, leaf: "l1", "leaf bias: k must give a Convex, got str"),
    ]:
        with pytest.raises(InputError, match=message):
            lion_k(0.1, k).init(PARAMS)
    with pytest.raises(InputError, match="leaf z: lion_k moves real floating numbers, got complex64"):
        lion_k(0.1, L1()).init({"z": jnp.ones(2, jnp.complex64)})


def test_fit_finds_the_bounded_optimum(key):
    """min Σ (w - c)² where |w| <= 1/2: c clipped."""
    truth = jnp.array([2.0, -0.2, 0.3, -4.0])
    run = fit(
        jnp.ones(4),
        lambda w, batch, key: (jnp.sum((w - truth) ** 2), {}),
        optimizer=lion_k(optax.exponential_decay(0.05, 200, 0.1), L1(), weight_decay=2.0),
        steps=1000,
        chunk=1000,
        key=key,
        progress=False,
    )
    np.testing.assert_allclose(run.model, jnp.clip(truth, -0.5, 0.5), atol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, r"b2 must be in \[0, 1\), got -0.1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
        ({"weight_decay": 20.0}, r"learning_rate \* weight_decay must be below 1 with explicit decay, got 2.0"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        lion_k(**({"learning_rate": 0.1, "k": L1()} | options))


def test_a_slower_average_than_step_warns():
    with pytest.warns(UserWarning, match="b2 = 0.5 is below b1 = 0.9"):
        lion_k(0.1, L1(), b2=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lion_k(0.1, L1(), b1=0.9, b2=0.9)
