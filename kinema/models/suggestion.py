"""A network for data that somebody brings: name and sizes from the shape of one sample."""

import math
from collections.abc import Sequence
from typing import Any

from kinema.models.checks import as_shape

# A token of a whole series, and attention among patches, pay up to about these sizes.
_LONGEST_SERIES = 1024
_MOST_TOKENS = 512
_FEWEST_FRAMES = 8


def suggest(
    shape: Sequence[int], *, time: bool | None = None, exchangeable: bool = False
) -> tuple[str, dict[str, Any]]:
    """Name and sizes of a network that trains well on samples of `shape`: `make(name, shape=shape, key=key, **sizes)`.

    `time` tells whether the first axis is time; by default shapes that look like images are images, all others of two
    axes and more trajectories. `exchangeable` says that the bodies of (frames, bodies, axes, channels) are alike.

    >>> suggest((16, 2, 2, 2), exchangeable=True)
    ('motion_tokens', {})
    >>> suggest((28, 28, 1))
    ('image_unet', {'width': 32, 'levels': 3})

    Raises:
        InputError: shape does not hold positive integers.
    """
    shape = as_shape(shape)
    if time is None:
        time = not _looks_like_image(shape)
    if len(shape) < 2:
        return _mlp(shape)
    return _of_trajectory(shape, exchangeable) if time else _of_field(shape)


def _of_trajectory(shape: tuple[int, ...], exchangeable: bool) -> tuple[str, dict[str, Any]]:
    frames, *frame = shape
    if len(shape) in (3, 4) and shape[2] <= 3 and frames * math.prod(shape[3:]) <= _LONGEST_SERIES:
        # Means over bodies are too coarse to tell many bodies apart that are not alike.
        if exchangeable:
            return "motion_tokens", {}
        if shape[1] <= 8:
            return "motion_tokens", {"distinct_bodies": True}
    if len(shape) == 4 and min(shape[1:3]) > 3:
        return _dit(shape)
    if frames < _FEWEST_FRAMES:
        return _mlp(shape)
    width = 64 if math.prod(frame) <= 64 else 128
    return "temporal_unet", {"width": width, "levels": _levels(frames, coarsest=16)}


def _of_field(shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    if len(shape) == 4:
        return _dit(shape)
    if len(shape) > 4 or min(shape[:2]) < 4:
        return _mlp(shape)
    side = max(shape[:2])
    return "image_unet", {"width": 32 if side <= 32 else 64, "levels": _levels(side, coarsest=8)}


def _mlp(shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    return "mlp", {"width": 256 if math.prod(shape) <= 256 else 512}


def _dit(shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Patches doubled along the longest axis of tokens until there are few enough."""
    tokens, patch = list(shape[:-1]), [1] * (len(shape) - 1)
    while math.prod(tokens) > _MOST_TOKENS:
        axis = tokens.index(max(tokens))
        patch[axis] *= 2
        tokens[axis] = math.ceil(shape[axis] / patch[axis])
    return "dit", {"patch": patch, "width": 192}


def _levels(length: int, coarsest: int) -> int:
    return max(2, 1 + math.ceil(math.log2(length / coarsest)))


def _looks_like_image(shape: tuple[int, ...]) -> bool:
    if len(shape) != 3:
        return False
    height, width, channels = shape
    return channels in (1, 3, 4) and min(height, width) >= 8 and max(height, width) <= 2 * min(height, width)
