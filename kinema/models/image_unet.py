"""U-Net for images and fields of two axes, 8x8 digits and up, with classes if wanted."""

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_sample
from kinema.models.embedding import Embedding
from kinema.models.registry import model
from kinema.models.unet import UNet

_EMBEDDING = 128


@model("image_unet")
class ImageUNet(eqx.Module):
    """Sample (height, width, channels), or (height, width) in grey; height and width may differ from `shape`'s.

    Sizes that work: 8x8 digits `width=32, levels=2`; 28x28 `width=32, levels=3`; 64x64 `width=64, levels=4`.

    Raises:
        InputError: sizes not positive; shape of another rank; x with other channels.
    """

    embedding: Embedding
    unet: UNet
    shape: tuple[int | None, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 32,
        levels: int = 2,
        depth: int = 1,
        heads: int = 4,
        classes: int | None = None,
        features: int | None = None,
        key: PRNGKeyArray,
    ):
        if len(shape) not in (2, 3):
            raise InputError(f"shape must be (height, width) or (height, width, channels), got {shape}")
        key_embedding, key_unet = jr.split(key)
        channels = shape[2] if len(shape) == 3 else 1
        self.embedding = Embedding(_EMBEDDING, classes=classes, features=features, key=key_embedding)
        self.unet = UNet(
            2,
            channels,
            channels,
            width=width,
            levels=levels,
            depth=depth,
            heads=heads,
            embedding=_EMBEDDING,
            key=key_unet,
        )
        self.shape = (None, None, *shape[2:])

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Float[Array, "..."]:
        check_sample(x, self.shape)
        image = x.reshape(*x.shape[:2], -1).astype(self.unet.stem.weight.dtype)
        return self.unet(image, self.embedding(signal, cond)).reshape(x.shape).astype(x.dtype)
