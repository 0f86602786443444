"""U-Net over time for any trajectory: (frames, ...) with any number of frames, the rest flattened to channels.

Convolutions make motion smooth, attention among the coarsest frames ties its ends together, and a code of the frame
number tells absolute time.   [after Janner, Du, Tenenbaum & Levine 2022]
"""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_sample
from kinema.models.embedding import Embedding
from kinema.models.layers import position_code
from kinema.models.registry import model
from kinema.models.unet import UNet

_EMBEDDING = 128
_TIME_CODE = 8


@model("temporal_unet")
class TemporalUNet(eqx.Module):
    """Sample (frames, ...); the number of frames may differ from `shape`'s.

    Sizes that work: `width=64`, `levels` so that the coarsest has 4 to 16 frames (16 frames: 2, 64 frames: 4).

    Raises:
        InputError: sizes not positive; shape without a frame axis; x with another shape of a frame.
    """

    embedding: Embedding
    unet: UNet
    shape: tuple[int | None, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        levels: int = 2,
        depth: int = 1,
        heads: int = 4,
        classes: int | None = None,
        features: int | None = None,
        key: PRNGKeyArray,
    ):
        if not shape:
            raise InputError("shape must be (frames, ...), got ()")
        key_embedding, key_unet = jr.split(key)
        channels = math.prod(shape[1:])
        self.embedding = Embedding(_EMBEDDING, classes=classes, features=features, key=key_embedding)
        self.unet = UNet(
            1,
            channels + _TIME_CODE,
            channels,
            width=width,
            levels=levels,
            depth=depth,
            heads=heads,
            embedding=_EMBEDDING,
            key=key_unet,
        )
        self.shape = (None, *shape[1:])

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, "..."]:
        check_sample(x, self.shape)
        dtype = self.unet.stem.weight.dtype
        series = x.reshape(x.shape[0], -1).astype(dtype)
        time = position_code((x.shape[0],), _TIME_CODE).astype(dtype)
        y = self.unet(jnp.concatenate([series, time], -1), self.embedding(signal, cond))
        return y.reshape(x.shape).astype(x.dtype)
