"""Truth: encoding is undone by decoding, and encoded data has mean 0 and variance 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate.codec import Codec

RANDOM = np.random.default_rng(0)
MOTION = {"v": 5 + 0.1 * RANDOM.normal(size=(40, 6, 2)), "x": -3 + 4 * RANDOM.normal(size=(40, 6, 2))}


def test_states_are_stacked_in_order_of_their_names():
    codec = Codec.fit(MOTION)
    assert codec.names == ("v", "x")
    one = {name: jnp.asarray(values[0], jnp.float32) for name, values in MOTION.items()}
    encoded = codec.encode(one)
    assert encoded.shape == (6, 2, 2)
    np.testing.assert_allclose(encoded[..., 0], (MOTION["v"][0] - MOTION["v"].mean()) / MOTION["v"].std(), atol=1e-4)
    np.testing.assert_allclose(encoded[..., 1], (MOTION["x"][0] - MOTION["x"].mean()) / MOTION["x"].std(), atol=1e-4)


@pytest.mark.parametrize("data", [MOTION, MOTION["x"], MOTION["x"][:, 0]], ids=["dict", "array", "vectors"])
def test_there_and_back(data):
    codec = Codec.fit(data)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), data)
    encoded = jax.vmap(codec.encode)(data)
    over = tuple(range(encoded.ndim - 1))
    np.testing.assert_allclose(encoded.mean(over), 0, atol=1e-3)
    np.testing.assert_allclose(encoded.std(over), 1, atol=1e-3)
    back = jax.vmap(codec.decode)(encoded)
    assert jax.tree.structure(back) == jax.tree.structure(data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), back, data)


def test_one_scale_for_all_channels():
    data = RANDOM.normal(size=(100, 3)) * [1.0, 2.0, 3.0] + [0, 5, 0]
    codec = Codec.fit(data, channels=False)
    np.testing.assert_allclose(codec.std, np.full(3, data.std()), rtol=1e-6)
    np.testing.assert_allclose(codec.mean, np.full(3, data.mean()), rtol=1e-6)


def test_a_channel_that_never_varies_keeps_a_scale():
    data = np.stack([RANDOM.normal(size=50), np.full(50, 7.0)], 1)
    codec = Codec.fit(data)
    np.testing.assert_allclose(codec.std[1], data.std(), rtol=1e-6)
    np.testing.assert_allclose(codec.encode(jnp.array([0.0, 7.0]))[1], 0, atol=1e-6)


def test_large_offsets_lose_nothing_to_single_precision():
    """Means and variances are summed in double precision."""
    data = np.float32(1000 + RANDOM.normal(size=(20_000, 1)))
    np.testing.assert_allclose(Codec.fit(data).std, data.astype(float).std(), rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.zeros((4, 2)), "v": np.zeros((4, 3))}, "one shape"),
        (np.zeros(4), "ensemble axis"),
        (np.full((4, 2), 3.0), "must vary"),
        (np.zeros((0, 2)), "empty"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), "row 1"),
    ],
)
def test_refuses(data, message):
    with pytest.raises(InputError, match=message):
        Codec.fit(data)
