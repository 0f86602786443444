"""Symmetries of the motion network, and its mix against the sum over other bodies and axes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from nets import apply, apply_all, normals, trained

from kinema import models
from kinema.errors import InputError
from kinema.models.motion_tokens import _Mix


def make(key, shape=(6, 2, 2, 2), **sizes):
    return trained(models.make("motion_tokens", shape=shape, width=16, depth=2, key=key, **sizes))


def test_exchanging_two_balls_exchanges_the_output_exactly(key):
    net, x = make(key), normals((6, 2, 2, 2))
    np.testing.assert_array_equal(apply(net, x[:, ::-1]), apply(net, x)[:, ::-1])
    xs = normals((5, 6, 2, 2, 2))
    signals = normals(5)
    np.testing.assert_array_equal(apply_all(net, xs[:, :, ::-1], signals), apply_all(net, xs, signals)[:, :, ::-1])


def test_permuting_many_bodies_permutes_the_output(key, x64):
    net, x = make(key, (6, 5, 3)), normals((6, 5, 3))
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(apply(net, x[:, order]), apply(net, x)[:, order], rtol=1e-10)


def test_offsets_break_just_the_symmetry_they_are_for(key):
    x = normals((6, 2, 2, 2))

    def by_axes(net):
        return jnp.abs(apply(net, x[:, :, ::-1]) - apply(net, x)[:, :, ::-1]).max()

    def by_bodies(net):
        return jnp.abs(apply(net, x[:, ::-1]) - apply(net, x)[:, ::-1]).max()

    alike = make(key, distinct_axes=False)
    assert by_axes(alike) == by_bodies(alike) == 0
    assert by_axes(make(key)) > 0.1
    assert by_bodies(make(key, distinct_bodies=True)) > 0.1


@pytest.mark.parametrize(("bodies", "axes"), [(2, 2), (4, 3)])
def test_mix_is_the_mix_of_self_and_others(bodies, axes, key, x64):
    own, other_axes, other_bodies, both = np.asarray(normals((4, 5, 5)))
    x = np.asarray(normals((bodies, axes, 5), 1))
    truth = np.zeros_like(x)
    for i, a in np.ndindex(bodies, axes):
        rest_i, rest_a = np.arange(bodies) != i, np.arange(axes) != a
        truth[i, a] = x[i, a] @ own + x[i, rest_a].mean(0) @ other_axes + x[rest_i, a].mean(0) @ other_bodies
        truth[i, a] += x[rest_i][:, rest_a].mean((0, 1)) @ both
    # The mean over others is n/(n-1) times the mean over all, less 1/(n-1) times self.
    n, m = bodies / (bodies - 1), axes / (axes - 1)
    p, q = 1 / (bodies - 1), 1 / (axes - 1)
    weights = [
        own - q * other_axes - p * other_bodies + p * q * both,
        m * other_axes - p * m * both,
        n * other_bodies - n * q * both,
        n * m * both,
    ]
    mix = eqx.tree_at(lambda mix: mix.weights, _Mix(5, key=key), jnp.asarray(np.stack(weights)))
    np.testing.assert_allclose(mix(jnp.asarray(x)), truth, atol=1e-12)


def test_number_of_bodies_is_free_unless_they_are_distinct(key):
    x = normals((6, 7, 2, 2))
    assert apply(make(key), x).shape == x.shape
    assert jnp.isfinite(apply(make(key), x[:, :1])).all()
    with pytest.raises(InputError, match=r"shape \(6, 2, 2, 2\), got \(6, 7, 2, 2\)"):
        make(key, distinct_bodies=True)(x, 0.5)
    with pytest.raises(InputError, match=r"shape \(6, any, 2, 2\), got \(5, 7, 2, 2\)"):
        make(key)(x[:5], 0.5)


def test_shape_of_another_rank_is_refused(key):
    with pytest.raises(InputError, match=r"shape must be \(frames, bodies, axes\)"):
        models.make("motion_tokens", shape=(6, 2), key=key)


def test_size_of_the_default_network(key):
    net = jax.eval_shape(lambda: models.make("motion_tokens", shape=(16, 2, 2, 2), key=jr.key(0)))
    assert sum(a.size for a in jax.tree.leaves(net)) < 1.5e6
