"""Images of any size, grey or coloured."""

import jax
import jax.numpy as jnp
import pytest
from nets import apply, normals, trained

from kinema import models
from kinema.errors import InputError
from kinema.models.unet import _double


def make(key, shape, **sizes):
    return trained(models.make("image_unet", shape=shape, **{"width": 8, "heads": 2} | sizes, key=key))


@pytest.mark.parametrize(("shape", "levels"), [((8, 8), 2), ((28, 28, 1), 3), ((9, 5, 3), 3), ((1, 2, 1), 3)])
def test_sizes_that_do_not_divide(shape, levels, key):
    x = normals(shape)
    y = apply(make(key, shape, levels=levels, classes=10), x, 0.5, jnp.array(7))
    assert y.shape == shape and jnp.isfinite(y).all()


def test_another_size_than_it_was_made_for(key):
    net = make(key, (8, 8, 1))
    assert apply(net, jnp.ones((11, 6, 1))).shape == (11, 6, 1)


def test_every_pixel_depends_on_the_corner(key):
    net, x = make(key, (8, 8)), normals((8, 8))
    assert (jnp.abs(apply(net, x.at[0, 0].add(1.0)) - apply(net, x)) > 0).all()


def test_transposing_the_image_is_not_a_symmetry(key):
    net, x = make(key, (8, 8)), normals((8, 8))
    assert jnp.abs(apply(net, x.T) - apply(net, x).T).max() > 0.1


def test_doubling_repeats_and_crops():
    x = jnp.arange(4.0).reshape(2, 2, 1)
    assert _double(x, (3, 4))[..., 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]


def test_depth_adds_blocks(key):
    def count(depth):
        return len(jax.tree.leaves(make(key, (8, 8), depth=depth)))

    assert count(3) - count(2) == count(2) - count(1) > 0


def test_shape_of_another_rank_is_refused(key):
    with pytest.raises(InputError, match=r"shape must be \(height, width\) or \(height, width, channels\), got \(8,\)"):
        make(key, (8,))
