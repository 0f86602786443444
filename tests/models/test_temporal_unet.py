"""Any trajectory, any number of frames."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from nets import apply, normals, trained

from kinema import models
from kinema.errors import InputError


def make(key, shape, **sizes):
    return trained(models.make("temporal_unet", shape=shape, **{"width": 8, "heads": 2, "levels": 3} | sizes, key=key))


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 13])
def test_any_number_of_frames(frames, key):
    x = normals((frames, 2))
    y = apply(make(key, (16, 2)), x)
    assert y.shape == x.shape and jnp.isfinite(y).all()


@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 3, 2, 2)])
def test_any_shape_of_a_frame(shape, key):
    assert apply(make(key, shape, levels=2), jnp.ones(shape)).shape == shape


def test_every_frame_depends_on_the_first(key):
    net, x = make(key, (12, 2)), jnp.ones((12, 2))
    assert (jnp.abs(apply(net, x.at[0].add(1.0)) - apply(net, x)).max(1) > 1e-6).all()


def test_frames_know_their_time_also_without_attention(key):
    net = make(key, (24, 2), levels=1)
    net = eqx.tree_at(lambda n: n.unet.attention.output, net, replace_fn=lambda w: jax.tree.map(jnp.zeros_like, w))
    # six convolutions: frames 8..15 do not see the ends
    assert jnp.abs(jnp.diff(apply(net, jnp.ones((24, 2)))[8:16], axis=0)).max(1).min() > 1e-3


def test_bad_shapes(key):
    with pytest.raises(InputError, match=r"shape must be \(frames, ...\), got \(\)"):
        models.make("temporal_unet", shape=(), key=key)
    with pytest.raises(InputError, match=r"shape \(any, 2\), got \(12, 3\)"):
        make(key, (12, 2))(jnp.ones((12, 3)), 0.5)
    with pytest.raises(InputError, match="width must be a multiple of heads"):
        make(key, (12, 2), heads=7)
