"""Patches and their inverse; series, images and videos."""

import jax.numpy as jnp
import numpy as np
import pytest
from nets import apply, normals, trained

from kinema import models
from kinema.errors import InputError
from kinema.models.dit import _cut, _join


@pytest.mark.parametrize(("shape", "patch"), [((7, 2), (3,)), ((8, 6, 1), (2, 3)), ((5, 7, 9, 2), (2, 4, 3))])
def test_join_undoes_cut(shape, patch, key):
    x = normals(shape)
    patches = _cut(x, patch)
    assert patches.shape == (*(-(-n // p) for n, p in zip(shape, patch)), np.prod(patch) * shape[-1])
    np.testing.assert_array_equal(_join(patches, patch, shape), x)


def test_a_patch_holds_neighbours():
    x = jnp.arange(24.0).reshape(4, 6, 1)
    assert _cut(x, (2, 3))[1, 0].tolist() == [12, 13, 14, 18, 19, 20]


@pytest.mark.parametrize(("shape", "patch"), [((9, 2), 2), ((8, 8, 1), 4), ((4, 6, 6, 3), (1, 3, 2))])
def test_series_images_and_videos(shape, patch, key):
    net = trained(models.make("dit", shape=shape, patch=patch, width=16, depth=1, heads=2, key=key))
    x = normals(shape)
    assert jnp.isfinite(apply(net, x)).all()
    longer = jnp.concatenate([x, x[:3]])
    assert apply(net, longer).shape == longer.shape


def test_bad_sizes(key):
    with pytest.raises(InputError, match=r"shape must be \(\*grid, channels\)"):
        models.make("dit", shape=(4,), key=key)
    with pytest.raises(InputError, match=r"patch must be one number or 2, got \[2, 2, 2\]"):
        models.make("dit", shape=(8, 8, 1), patch=[2, 2, 2], key=key)
    with pytest.raises(InputError, match="patch must be a positive integer, got 0"):
        models.make("dit", shape=(8, 8, 1), patch=[2, 0], key=key)
    with pytest.raises(InputError, match="width must be a multiple of heads"):
        models.make("dit", shape=(8, 8, 1), width=10, heads=4, key=key)
