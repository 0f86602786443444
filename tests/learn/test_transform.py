"""Optimizer state that follows a changed model: what it would have been, had the model always been so."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn import Correspondence, Piece, Rebalance, Trainable, begin, fit, transplant
from kinema.motion import trees

STILL = {  # rate 0: the state gathers gradients and the weights stay
    "momentum": optax.sgd(0.0, momentum=0.9),
    "adam": optax.adam(0.0),
    "adan": optax.adan(0.0),
    "labels": optax.multi_transform({"a": optax.adam(0.0)}, lambda params: jax.tree.map(lambda _: "a", params)),
}
BALANCE = Rebalance("layers/0/weight", "layers/1/weight", bias="layers/0/bias")


@pytest.fixture
def net(key):
    made = eqx.nn.MLP(3, 2, 5, 1, key=key)
    return trees.replace_leaves(made, {"layers/0/weight": 7 * made.layers[0].weight})


def gathered(rule, model, times=3):
    """The state of `rule` after gradients of a loss at `model`."""
    params, static = Trainable().split(model)
    state = begin(rule, params, 0.9)
    x = jr.normal(jr.key(3), (times, 4, 3))

    def loss(params, x):
        return jnp.mean(jnp.sin(jax.vmap(eqx.combine(params, static))(x)))

    for part in x:
        grads = jax.grad(loss)(state.params, part)
        _, opt_state = rule.update(grads, state.opt_state, state.params)
        state = eqx.tree_at(lambda s: s.opt_state, state, opt_state)
    return state


def test_rebalancing_keeps_the_function_and_equals_the_norms(net, key):
    new, where = BALANCE(net, key=key)
    x = jr.normal(key, (20, 3))
    np.testing.assert_allclose(jax.vmap(new)(x), jax.vmap(net)(x), rtol=2e-5, atol=1e-6)
    into = jnp.sum(new.layers[0].weight ** 2, 1) + new.layers[0].bias ** 2
    np.testing.assert_allclose(into, jnp.sum(new.layers[1].weight ** 2, 0), rtol=1e-5)
    assert np.abs(new.layers[0].weight - net.layers[0].weight).max() > 0.5
    assert set(where.pieces) == {"layers/0/weight", "layers/0/bias", "layers/1/weight"}


@pytest.mark.parametrize("name", STILL)
def test_moments_are_those_of_a_run_of_the_new_model(name, net, key):
    rule = STILL[name]
    new, where = BALANCE(net, key=key)
    moved = transplant(gathered(rule, net), new, where, rule)
    wanted = gathered(rule, new)
    for (leaf, got), want in zip(trees.named_leaves(moved.opt_state), jax.tree.leaves(wanted.opt_state), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7 * np.abs(want).max(), err_msg=leaf)
    np.testing.assert_allclose(moved.ema.layers[0].weight, new.layers[0].weight, rtol=1e-5)
    assert jax.tree.structure(moved) == jax.tree.structure(wanted)


def test_slices_may_grow_move_and_be_shared():
    """A unit split in two equal halves: moments of its copies, by the factors of their gradients."""
    old, rule = {"w": jnp.array([1.0, 2.0])}, optax.adam(0.0)
    state = begin(rule, old)
    _, opt_state = rule.update({"w": jnp.array([3.0, 5.0])}, state.opt_state, old)
    state = eqx.tree_at(lambda s: s.opt_state, state, opt_state)
    pieces = [Piece("w", np.s_[:], np.s_[1:]), Piece("w", np.s_[1:], np.s_[:1], 0.5, gradient_factor=1.0)]
    moved = transplant(state, {"w": jnp.array([1.0, 1.0, 2.0])}, Correspondence({"w": pieces}), rule)
    adam = moved.opt_state[0]
    np.testing.assert_allclose(adam.mu["w"], [0.5, 0.3, 0.5], rtol=1e-5)
    np.testing.assert_allclose(adam.nu["w"], [0.025, 0.009, 0.025], rtol=1e-4)
    np.testing.assert_allclose(moved.ema["w"], [1, 1, 2])
    assert adam.count == 1


def test_freezing_and_unfreezing_in_mid_run(key):
    """The layer that went on learning takes the steps of an unbroken run; the other begins anew."""
    target = {"a": jnp.array([1.0, -1.0]), "b": jnp.array(3.0)}
    rule = optax.adam(0.1)

    def loss(model, batch, key):
        return trees.dot(trees.subtract(model, target), trees.subtract(model, target)), {}

    run = {"optimizer": rule, "chunk": 5, "key": key, "progress": False}
    whole = fit(trees.zeros_like(target), loss, steps=20, **run)
    first = fit(trees.zeros_like(target), loss, steps=10, **run)
    state = transplant(first.state, first.model, Correspondence(), rule, trainable="a")
    frozen = fit(first.model, loss, steps=15, trainable="a", state=state, **run)
    assert frozen.model["b"] == first.model["b"] and frozen.step == 15 and len(frozen.history) == 5
    state = transplant(frozen.state, frozen.model, Correspondence(), rule)
    thawed = fit(frozen.model, loss, steps=20, state=state, **run)
    np.testing.assert_array_equal(thawed.model["a"], whole.model["a"])
    np.testing.assert_array_equal(thawed.ema["a"], whole.ema["a"])
    assert thawed.state.opt_state[0].mu["b"] != 0 and thawed.model["b"] > frozen.model["b"]
    with pytest.raises(InputError, match=r"state does not fit the model and its optimizer: .*params.*transplant"):
        fit(frozen.model, loss, steps=20, state=first.state, trainable="a", **run)


def test_bad_input_is_refused(net, key):
    with pytest.raises(InputError, match="unknown leaf 'layers/9/weight'"):
        Rebalance("layers/9/weight", "layers/1/weight")(net, key=key)
    with pytest.raises(InputError, match="layers/0/weight has 3 units on axis 1, layers/1/weight 5"):
        Rebalance("layers/0/weight", "layers/1/weight", axes=(1, 1))(net, key=key)
    model, rule = {"w": jnp.ones(4)}, optax.sgd(0.1, momentum=0.9)
    state = begin(rule, model)
    with pytest.raises(InputError, match="unknown leaf of the new model 'v'"):
        transplant(state, model, Correspondence({"v": [Piece("w")]}), rule)
    with pytest.raises(InputError, match=r"a piece of w has shape \(2,\), its part of w \(4,\)"):
        transplant(state, model, Correspondence({"w": [Piece("w", put=np.s_[:2])]}), rule)
    sign = optax.chain(optax.trace(0.9), optax.stateless(lambda g, p: jax.tree.map(jnp.sign, g)), optax.trace(0.9))
    slow = optax.GradientTransformation(lambda p: {"slow": p}, lambda g, s, p: (g, {"slow": trees.add(s["slow"], g)}))
    halved = Correspondence({"w": [Piece("w", factor=0.5)]})
    assert transplant(begin(sign, model), model, halved, sign).step == 0
    with pytest.raises(InputError, match="state slow/w of the optimizer is no power of the gradient"):
        transplant(begin(slow, model), model, halved, slow)
