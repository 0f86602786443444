"""The perceptron by hand, and at the odd sizes where compilers have been wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import apply, normals

from kinema import models


def output_at_one(net):
    """`net` with an output layer that adds up all features."""
    return eqx.tree_at(lambda n: n.output.weight, net, jnp.ones_like(net.output.weight))


@pytest.mark.parametrize("residual", [True, False])
def test_against_numpy(residual, key, x64):
    net = output_at_one(models.make("mlp", shape=(2, 2), width=8, depth=2, residual=residual, key=key))
    x = np.array([[0.3, -1.0], [2.0, 0.7]])
    level = np.asarray(net.embedding(0.5))
    h = x.ravel() @ np.asarray(net.input.weight)
    for layer, modulation in zip(net.layers, net.modulations):
        y = h @ np.asarray(layer.weight)
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
        scale, shift = np.split(level @ np.asarray(modulation.weight), 2)
        y = y * (1 + scale) + shift
        y = y / (1 + np.exp(-y))
        h = h + y if residual else y
    np.testing.assert_allclose(net(jnp.asarray(x), 0.5), np.full((2, 2), h.sum()), rtol=1e-9)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4, 5)])
def test_any_shape(shape, key):
    assert apply(models.make("mlp", shape=shape, width=4, depth=1, key=key), jnp.ones(shape)).shape == shape


@pytest.mark.parametrize("rows", [16385, 32769, 40000])
def test_jit_is_eager_at_odd_large_sizes(rows, key):
    net = output_at_one(models.make("mlp", shape=(3,), width=3, depth=1, key=key))

    def run(xs):
        return jax.vmap(net, (0, None))(xs, 0.5)

    xs = normals((rows, 3))
    np.testing.assert_allclose(jax.jit(run)(xs), run(xs), atol=1e-5)
