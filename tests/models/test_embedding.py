"""Signal features, labels, vectors and their null."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema import models
from kinema.models.embedding import Embedding, LabelCondition, VectorCondition, signal_features


def test_signal_features_at_known_places():
    features = signal_features(12.0)
    assert features.shape == (33,)
    # the slowest wave is a quarter of its period of 48 from 0 at 12, the fastest is at 8 whole periods of 1.5
    np.testing.assert_allclose(features[jnp.array([0, 16, 15, 31, 32])], [1, 0, 0, 1, 1], atol=1e-4)
    np.testing.assert_allclose(signal_features(0), [0] * 16 + [1] * 16 + [0], atol=0)


def test_signal_features_tell_all_signals_apart():
    features = jax.vmap(signal_features)(jnp.linspace(-12.0, 12.0, 241))
    apart = jnp.linalg.norm(features[:, None] - features, axis=-1) + 10 * jnp.eye(241)
    assert apart.min() > 0.3


def test_label_takes_its_row_and_out_of_range_is_nan_when_compiled(key):
    condition = LabelCondition(3, 5, key=key)
    rows = jax.jit(jax.vmap(condition))(jnp.array([0, 2, 3, 4, -1]))
    np.testing.assert_array_equal(rows[:3], condition.table[jnp.array([0, 2, 3])])
    assert jnp.isnan(rows[3:]).all()
    np.testing.assert_array_equal(condition(None), condition.table[3])


def test_vector_is_linear_and_nan_is_null(key):
    condition = VectorCondition(3, 5, key=key)
    cond = jnp.array([[0.3, -2.0, 1.0], [jnp.nan] * 3])
    vectors = jax.jit(jax.vmap(condition))(cond)
    np.testing.assert_allclose(vectors[0], condition.linear(cond[0]), rtol=1e-5)
    np.testing.assert_array_equal(vectors[1], condition.unknown)
    np.testing.assert_array_equal(condition(np.array([1, 0, 2])), condition(jnp.array([1.0, 0.0, 2.0])))
    assert jnp.isnan(condition(jnp.array([1.0, jnp.nan, 0.0]))).all(), "half a condition is a mistake"
    by_weights, by_vector = jax.grad(lambda condition, v: condition(v).sum(), (0, 1))(condition, cond[1])
    np.testing.assert_array_equal(by_weights.linear.weight, 0)
    np.testing.assert_array_equal(by_vector, 0)


def test_null_condition_of_every_kind(key):
    def net(**sizes):
        return models.make("mlp", shape=(2,), width=4, depth=1, key=key, **sizes)

    assert models.null_condition(net()) is None
    assert models.null_condition(net(classes=7)) == 7
    null = models.null_condition(net(features=3))
    assert null.shape == (3,) and jnp.isnan(null).all()


def test_dropping_conditions_by_where(key):
    embedding = Embedding(8, classes=3, key=key)
    dropped = jnp.where(jnp.array([True, False]), 3, jnp.array([1, 1]))
    vectors = jax.vmap(embedding, (None, 0))(0.5, dropped)
    np.testing.assert_allclose(vectors[0], embedding(0.5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vectors[1], embedding(0.5, jnp.array(1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signal", [0.5, 3, np.float64(0.5), jnp.array(0.5), jnp.array(0.5, jnp.bfloat16)])
def test_any_number_is_a_signal(signal, key):
    assert Embedding(8, key=key)(signal).shape == (8,)
