"""Layers against NumPy."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error
from nets import normals

from kinema.errors import InputError
from kinema.models import layers


def test_normal_has_its_moments_and_one_set_of_bits(key):
    def draw(key):
        return layers.normal(key, (200, 300), 0.5)

    x, n = draw(key), 60_000
    assert_within_error(x.mean(), 0.0, standard_error=0.5 / n**0.5)
    assert_within_error(x.var(), 0.25, standard_error=0.25 * (2 / n) ** 0.5)
    np.testing.assert_array_equal(jax.jit(draw)(key), x)
    keys = jr.split(key, 2)
    np.testing.assert_array_equal(jax.vmap(draw)(keys), jnp.stack([draw(k) for k in keys]))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [(1,), (7,), (8,), (5, 6)])
def test_convolution_is_the_sum_over_shifts(grid, stride, key, x64):
    conv = layers.Conv(len(grid), 2, 3, stride=stride, key=key)
    x = np.asarray(normals((*grid, 2)))
    padded = np.pad(x, [(1, 1)] * len(grid) + [(0, 0)])
    truth = np.zeros((*(-(-n // stride) for n in grid), 3))
    for place in np.ndindex(truth.shape[:-1]):
        window = padded[tuple(slice(stride * i, stride * i + 3) for i in place)]
        truth[place] = np.tensordot(window, np.asarray(conv.weight), len(grid) + 1)
    np.testing.assert_allclose(conv(jnp.asarray(x)), truth, atol=1e-12)
    for way in (layers._as_convolution, layers._as_products):
        np.testing.assert_allclose(way(jnp.asarray(x), conv.weight, stride), truth, atol=1e-12)


def test_attention_against_numpy(key, x64):
    attention = layers.Attention(6, 2, key=key)
    x = np.asarray(normals((5, 6)))
    q, k, v = np.split(x @ np.asarray(attention.qkv.weight), 3, axis=-1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        score = np.exp(q[:, part] @ k[:, part].T / 3**0.5)
        heads.append(score / score.sum(1, keepdims=True) @ v[:, part])
    truth = np.concatenate(heads, 1) @ np.asarray(attention.output.weight)
    np.testing.assert_allclose(attention(jnp.asarray(x)), truth, atol=1e-6)
    with pytest.raises(InputError, match="width must be a multiple of heads, got width=6, heads=4"):
        layers.Attention(6, 4, key=key)


@pytest.mark.parametrize(("features", "groups"), [(6, 1), (32, 8), (36, 4)])
def test_group_norm_standardizes_each_group_over_all_positions(features, groups, key):
    x = 3.0 + 2.0 * normals((7, 5, features))
    y = layers.group_norm(x).reshape(35, groups, -1)
    np.testing.assert_allclose(y.mean((0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 2)), 1, atol=1e-4)


def test_layer_norm_in_half_precision_keeps_its_moments_wide(key):
    x = (100.0 + normals((4, 64))).astype(jnp.bfloat16)
    y = layers.layer_norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), layers.layer_norm(x.astype(jnp.float32)), atol=0.02)


def test_modulate_by_hand():
    y = layers.modulate(jnp.array([[1.0, 2.0], [3.0, 5.0]]), jnp.array([0.5, -1.0, 10.0, 20.0]))
    np.testing.assert_array_equal(y, [[11.5, 20.0], [14.5, 20.0]])


@pytest.mark.parametrize(("grid", "width"), [((40,), 8), ((6, 9), 16), ((3, 4, 5), 20)])
def test_position_code_tells_all_places_apart(grid, width):
    code = np.asarray(layers.position_code(grid, width))
    assert code.shape == (*grid, width)
    flat = code.reshape(-1, width)
    apart = np.linalg.norm(flat[:, None] - flat, axis=-1) + 10 * np.eye(len(flat))
    assert apart.min() > 0.01
