import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.learn import Accumulated, BackPropagation, LowPrecision, Trainable, fit


def square(model, batch, key):
    return jnp.sum(jnp.abs(model["w"] - batch) ** 2) * model["c"], {"size": jnp.abs(model["w"])}


def test_gradient_loss_and_metrics_in_closed_form(key):
    model = {"w": jnp.array([1.0, 5.0]), "c": jnp.array(3.0)}
    params, static = Trainable("w").split(model)
    grads, aux = jax.jit(BackPropagation(square))(params, static, jnp.array([2.0, 1.0]), key)
    assert grads["w"].tolist() == [-6, 24] and grads["c"] is None
    assert aux["loss"] == 3 * (1 + 16) and aux["size"].tolist() == [1, 5]


def test_complex_parameters_get_the_direction_of_steepest_ascent(key):
    model = {"w": jnp.array([1 + 2j]), "c": jnp.array(1.0)}
    grads, _ = BackPropagation(square)(*Trainable("w").split(model), jnp.array([0j]), key)
    assert_within_error(abs(grads["w"][0] - (2 + 4j)), 0, standard_error=1e-6)


@pytest.mark.parametrize(
    "objective, message",
    [
        (lambda m, b, k: m.sum(), r"must return \(loss, metrics\)"),
        (lambda m, b, k: (m.sum(), m), "must return .* got a tuple of"),
        (lambda m, b, k: (m, {}), r"real scalar, got float32 of shape \(2,\)"),
        (lambda m, b, k: (m.sum() * 1j, {}), "real scalar, got complex64"),
        (lambda m, b, k: (m.sum(), {"loss": m}), "other than 'loss'"),
        (lambda m, b, k: (m.sum(), {3: m}), "named by text"),
        (lambda m, b, k: (m.sum(), {"x": "text"}), "metric 'x' must be an array of real numbers"),
        (lambda m, b, k: (m.sum(), {"x": m * 1j}), "metric 'x' must be an array of real numbers"),
    ],
)
def test_what_an_objective_may_not_return(key, objective, message):
    with pytest.raises(InputError, match=message):
        jax.jit(BackPropagation(objective))(*eqx.partition(jnp.ones(2), True), None, key)


def distance(model, batch, key):
    return jnp.mean((jax.vmap(jnp.dot, (None, 0))(model, batch["x"]) - batch["y"]) ** 2), {"y": batch["y"].mean()}


def test_accumulation_is_the_whole_batch(key):
    batch = {"x": jax.random.normal(key, (12, 3)), "y": jnp.arange(12.0)}
    split = Trainable().split(jnp.array([1.0, -2.0, 0.5]))
    whole, aux = BackPropagation(distance)(*split, batch, key)
    grads, parts = jax.jit(Accumulated(distance, 4))(*split, batch, key)
    np.testing.assert_allclose(grads, whole, rtol=1e-5)
    np.testing.assert_allclose([parts["loss"], parts["y"]], [aux["loss"], aux["y"]], rtol=1e-6)
    with pytest.raises(InputError, match="a batch of 12 rows does not divide into 5 parts"):
        Accumulated(distance, 5)(*split, batch, key)
    with pytest.raises(InputError, match="parts must be at least 1"):
        Accumulated(distance, 0)


def test_low_precision_computes_narrow_and_learns_wide(key):
    """Steps of 2^-12 of the weight are lost in bfloat16 and kept in float32 masters."""
    seen = []

    def loss(w, batch, key):
        seen.append((w.dtype, batch.dtype))
        return jnp.sum(w * batch.mean()), {}

    run = {"optimizer": optax.sgd(2.0**-12), "steps": 64, "batch_size": 2, "key": key, "progress": False, "ema": None}
    wide = fit(jnp.ones(1), LowPrecision(loss), jnp.ones(2), **run)
    assert seen[0] == (jnp.bfloat16, jnp.bfloat16) and wide.model.dtype == jnp.float32
    assert wide.model[0] == 1 - 64 * 2.0**-12 and wide.history.loss.dtype == np.float32
    assert fit(jnp.ones(1, jnp.bfloat16), loss, jnp.ones(2), **run).model[0] == 1
    with pytest.raises(InputError, match="dtype must be a floating one, got int32"):
        LowPrecision(loss, dtype="int32")
