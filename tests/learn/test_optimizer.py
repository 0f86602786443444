import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kinema import learn
from kinema.errors import InputError


def rates(optimizer, steps):
    """Adam moves by its rate when every gradient is 1."""
    w = jnp.zeros(())
    state = optimizer.init(w)

    def body(state, _):
        update, state = optimizer.update(jnp.ones(()), state, w)
        return state, -update

    return np.asarray(jax.lax.scan(body, state, None, steps)[1])


def test_rate_rises_linearly_then_falls_on_a_cosine():
    steps, rising, rate = 100, 5, 0.1
    k = np.arange(steps)
    rise = rate * (k + 1) / (rising + 1)
    fall = rate / 2 * (1 + np.cos(np.pi * (k - rising) / (steps - rising)))
    assert np.allclose(
        rates(learn.adam(rate, steps, clip=None), steps), np.where(k < rising, rise, fall), rtol=1e-4, atol=1e-6
    )
    assert np.allclose(rates(learn.adam(rate, 4, warmup=0.0), 4)[0], rate)


def test_gradients_are_clipped_by_their_global_norm():
    big = {"a": jnp.array(30.0), "b": jnp.array(40.0)}
    first = [
        learn.adam(0.1, 9, clip=clip).update(big, learn.adam(0.1, 9, clip=clip).init(big))[1] for clip in (2.0, None)
    ]
    moments = [optax.tree_utils.tree_get(state, "mu") for state in first]
    assert np.allclose([moments[0]["a"], moments[0]["b"]], [0.1 * 1.2, 0.1 * 1.6])
    assert np.allclose([moments[1]["a"], moments[1]["b"]], [3, 4])


def test_the_same_numbers_give_the_same_object():
    assert learn.adam(1e-3, 10) is learn.adam(1e-3, 10)
    assert learn.adam(1e-3, 10) is not learn.adam(2e-3, 10)


@pytest.mark.parametrize("bad", [{"rate": 0.0}, {"steps": 0}, {"warmup": 1.0}, {"clip": 0.0}, {"rate": float("nan")}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(InputError, match="adam needs"):
        learn.adam(**({"rate": 1e-3, "steps": 10} | bad))


def test_rules_and_masks_by_leaf_names():
    """Rate 1 for weights, 0.1 for biases, nothing for the rest; decay on weights alone."""
    params = {"a": {"weight": jnp.ones(2), "bias": jnp.ones(2)}, "scale": jnp.ones(1)}
    rule = learn.by_path({"*weight": optax.sgd(1.0), "a/*": optax.sgd(0.1)}, optax.set_to_zero())
    updates, _ = rule.update(params, rule.init(params), params)
    moved = {"weight": updates["a"]["weight"][0], "bias": updates["a"]["bias"][0], "scale": updates["scale"][0]}
    assert moved == pytest.approx({"weight": -1, "bias": -0.1, "scale": 0})
    decay = optax.add_decayed_weights(0.5, mask=learn.leaf_mask("*weight"))
    grads, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    assert grads["a"]["weight"][0] == 0.5 and grads["a"]["bias"][0] == 0
    with pytest.raises(InputError, match="unknown leaf '\\*wait'"):
        learn.by_path({"*wait": optax.sgd(1.0)}, optax.sgd(0.1)).init(params)
    with pytest.raises(InputError, match="unknown trainable leaf"):
        decay = optax.add_decayed_weights(0.5, mask=learn.leaf_mask("*wait"))
        decay.update(params, decay.init(params), params)
