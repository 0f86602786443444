"""Every shape gets a network that accepts it."""

import math

import jax
import jax.random as jr
import pytest

from kinema import models
from kinema.errors import InputError


@pytest.mark.parametrize(
    ("shape", "more", "name"),
    [
        ((), {}, "mlp"),
        ((2,), {}, "mlp"),
        ((3, 2), {}, "mlp"),
        ((16, 4), {}, "temporal_unet"),
        ((64, 22, 3), {}, "temporal_unet"),
        ((16, 2, 2, 2), {}, "motion_tokens"),
        ((16, 50, 2, 2), {"exchangeable": True}, "motion_tokens"),
        ((16, 50, 2, 2), {}, "temporal_unet"),
        ((16, 2, 2), {}, "motion_tokens"),
        ((2000, 2, 2), {}, "temporal_unet"),
        ((8, 8, 1), {}, "image_unet"),
        ((8, 8), {"time": False}, "image_unet"),
        ((28, 28, 1), {}, "image_unet"),
        ((64, 48, 3), {}, "image_unet"),
        ((64, 48, 3), {"time": True}, "temporal_unet"),
        ((32, 32, 32, 3), {}, "dit"),
        ((32, 32, 32, 3), {"time": False}, "dit"),
        ((16, 8, 8, 8, 2), {}, "temporal_unet"),
        ((4, 4, 4, 4, 4), {"time": False}, "mlp"),
    ],
)
def test_the_right_network_that_accepts_the_shape(shape, more, name):
    found, sizes = models.suggest(shape, **more)
    assert found == name
    models.spec(found, shape=shape, **sizes)

    def output():
        net = models.make(found, shape=shape, key=jr.key(0), **sizes)
        return net(jax.numpy.zeros(shape), 0.5)

    assert jax.eval_shape(output).shape == shape


def test_levels_grow_with_the_size():
    def levels(shape):
        return models.suggest(shape)[1]["levels"]

    assert [levels((n, n, 1)) for n in (8, 16, 28, 32, 64)] == [2, 2, 3, 3, 4]
    assert [levels((n, 4)) for n in (8, 32, 33, 64, 256)] == [2, 2, 3, 3, 5]


def test_patches_keep_attention_affordable():
    _, sizes = models.suggest((32, 128, 128, 3))
    tokens = math.prod(-(-n // p) for n, p in zip((32, 128, 128), sizes["patch"]))
    assert 128 < tokens <= 512


def test_bodies_are_distinct_unless_said_otherwise():
    assert models.suggest((16, 2, 2, 2)) == ("motion_tokens", {"distinct_bodies": True})
    assert models.suggest((16, 2, 2, 2), exchangeable=True) == ("motion_tokens", {})


def test_shapes_that_are_none():
    with pytest.raises(InputError, match="shape must hold positive integers"):
        models.suggest((16, -1))
