"""Any trajectory, any number of frames."""

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


def test_every_frame_depends_on_the_first_and_knows_its_time(key):
    net, x = make(key, (12, 2)), jnp.ones((12, 2))
    moved = jnp.abs(apply(net, x.at[0].add(1.0)) - apply(net, x)).max(1)
    assert (moved > 1e-6).all()
    assert jnp.abs(jnp.diff(apply(net, x), axis=0)).max(1)[3:-3].min() > 1e-4


def test_bad_shapes(key):
    with pytest.raises(InputError, match=r"shape must be \(frames, ...\), got \(\)"):
        models.make("temporal_unet", shape=(), key=key)
    with pytest.raises(InputError, match=r"shape \(any, 2\), got \(12, 3\)"):
        make(key, (12, 2))(jnp.ones((12, 3)), 0.5)
    with pytest.raises(InputError, match="width must be a multiple of heads"):
        make(key, (12, 2), heads=7)
