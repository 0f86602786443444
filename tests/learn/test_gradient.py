import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.learn import BackPropagation, Trainable


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
