"""Pixels of discs and squares, and their inverse. Pixel centres are (k + 1/2) h; the row at the top has the largest y.

Coverage of a pixel at p by a disc at c is clip(1/2 + (r - |p - c|) / h, 0, 1), of a square of half side r the product
over axes of clip(1/2 + (r - |p_i - c_i|) / h, 0, 1). The ramp adds h^2 / 12 to r^2 in the area of a disc and nothing to
that of a square, so `parse` knows the radius from the area.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from kinema.errors import InputError, unknown

PALETTE = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.6, 0.0), (1.0, 0.6, 0.0), (0.6, 0.0, 0.8), (0.0, 0.7, 0.8))
WHITE = (1.0, 1.0, 1.0)
SHAPES = ("disc", "square")

# Cut by the border: reaches over it by this share of a pixel. Gone: a radius below this many pixels.
_CUT, _GONE = 0.05, 0.7


def draw(
    x: Float[Array, "n 2"],
    radius: Float[Array, " n"],
    *,
    size: Float[Array, "2"],
    pixels: int | tuple[int, int] = 64,
    colours: Any = None,
    shapes: str | Sequence[str] = "disc",
    background: Any = WHITE,
) -> Float[Array, "height width 3"]:
    """Picture in 0 .. 1 of bodies at `x`. Where bodies overlap their colours are mixed.

    >>> draw(jnp.array([[0.5, 0.5]]), jnp.array([0.2]), size=jnp.ones(2), pixels=32).shape
    (32, 32, 3)

    Args:
        pixels: along the width, for square pixels; or (height, width), which a box of unknown (traced) shape needs.
        colours: (n, 3) in 0 .. 1; None: a palette, which repeats after 6 bodies.
        shapes: "disc" or "square", for all or one a body; `radius` is half the side of a square.

    Raises:
        InputError: pixels not positive, an unknown shape, colours not (n, 3).
    """
    n = x.shape[0]
    rows, columns = _resolution(pixels, size)
    colours = _colours([PALETTE[i % len(PALETTE)] for i in range(n)] if colours is None else colours, n)
    square = jnp.asarray([shape == "square" for shape in _shapes(shapes, n)])[:, None, None]
    h = size[0] / columns
    dx = (jnp.arange(columns) + 0.5) * h - x[:, 0, None]
    dy = (jnp.arange(rows)[::-1] + 0.5) * h - x[:, 1, None]

    def ramp(gap):
        return jnp.clip(0.5 + gap / h, 0, 1)

    distance = jnp.sqrt(jnp.maximum(dx[:, None, :] ** 2 + dy[:, :, None] ** 2, jnp.finfo(x.dtype).tiny))
    disc = ramp(radius[:, None, None] - distance)
    box = ramp(radius[:, None] - jnp.abs(dx))[:, None, :] * ramp(radius[:, None] - jnp.abs(dy))[:, :, None]
    coverage = jnp.where(square, box, disc)
    coverage = coverage / jnp.maximum(coverage.sum(0), 1)
    paint = jnp.asarray(colours - np.asarray(background), x.dtype)
    return jnp.asarray(background, x.dtype) + jnp.einsum("nhw,nc->hwc", coverage, paint)


def parse(
    video: Float[Array, "*batch frames height width 3"],
    colours: Any,
    dt: float,
    *,
    width: float = 1.0,
    shapes: str | Sequence[str] = "disc",
    background: Any = WHITE,
    floor: float = 0.02,
) -> tuple[dict[str, Float[Array, "..."]], Bool[Array, "*batch frames n"]]:
    """(state, seen): where bodies of known colours are in a film whose frames are `dt` apart.

    Coverage of a colour by least squares; centre: its mean; radius: from its area. state["x"], state["v"] (..., frames,
    n, 2) and state["radius"] (..., frames, n) hold only where `seen`: a body that the border cuts, or that is gone, is
    not seen, and its numbers are 0. Velocities are central differences of positions (one-sided at the ends and next to
    frames that are not seen; 0 if there is none).

    >>> film = jnp.stack([draw(jnp.array([[x, 5.0]]), jnp.ones(1), size=jnp.full(2, 10.0)) for x in (4.0, 4.2)])
    >>> state, seen = parse(film, colours=[(1, 0, 0)], dt=0.1, width=10.0)
    >>> [round(float(v), 1) for v in state["v"][:, 0, 0]]
    [2.0, 2.0]

    Args:
        width: of the picture, in units of length.
        floor: coverage below it counts as none (noise of a generated film).

    Raises:
        InputError: dt not positive, fewer than two frames, colours that a mixture of the others can make.
    """
    if not (dt > 0 and width > 0):
        raise InputError(f"dt and width must be positive, got dt={dt}, width={width}")
    if video.ndim < 4 or video.shape[-4] < 2 or video.shape[-1] != 3:
        raise InputError(f"video must have shape (..., 2 or more frames, height, width, 3), got {video.shape}")
    paint = _colours(colours) - np.asarray(background, np.float64)
    n, (rows, columns) = len(paint), video.shape[-3:-1]
    if np.linalg.matrix_rank(paint, tol=1e-3) < n:
        raise InputError(
            f"colours must be linearly independent, seen from the background, got {np.asarray(colours).tolist()}"
        )
    h = width / columns
    square = jnp.asarray([shape == "square" for shape in _shapes(shapes, n)])
    unmix = jnp.asarray(np.linalg.pinv(paint), video.dtype)
    coverage = jnp.clip((video - jnp.asarray(background, video.dtype)) @ unmix, 0, 1)
    coverage = jnp.moveaxis(jnp.where(coverage < floor, 0, coverage), -1, -3)

    centres = jnp.arange(columns) + 0.5, (jnp.arange(rows)[::-1] + 0.5)
    area = coverage.sum((-2, -1))

    def mean(weights, at):
        return (weights * at).sum(-1) / jnp.maximum(area, 1e-6)

    x = jnp.stack([mean(coverage.sum(-2), centres[0]), mean(coverage.sum(-1), centres[1])], -1)
    radius = jnp.sqrt(jnp.maximum(jnp.where(square, area / 4, area / jnp.pi - 1 / 12), 0))
    room = jnp.minimum(x, jnp.array([columns, rows]) - x).min(-1)
    seen = (radius > _GONE) & (room - radius > -_CUT)
    x, radius = x * h * seen[..., None], radius * h * seen
    return {"x": x, "v": _differences(x, seen, dt), "radius": radius}, seen


def _differences(x, seen, dt):
    """(x[k+1] - x[k-1]) / 2 dt where both are seen, else the one step whose ends are seen, else 0."""
    step = jnp.diff(x, axis=-3) / dt
    there = (seen[..., 1:, :] & seen[..., :-1, :]).astype(x.dtype)[..., None]
    pad = [(0, 0)] * (x.ndim - 3)
    total = jnp.pad(step * there, [*pad, (0, 1), (0, 0), (0, 0)]) + jnp.pad(
        step * there, [*pad, (1, 0), (0, 0), (0, 0)]
    )
    count = jnp.pad(there, [*pad, (0, 1), (0, 0), (0, 0)]) + jnp.pad(there, [*pad, (1, 0), (0, 0), (0, 0)])
    return total / jnp.maximum(count, 1)


def _resolution(pixels, size):
    if isinstance(pixels, int) and pixels > 0:
        if isinstance(size, Tracer):
            raise InputError("pixels must be (height, width) where the size of the box is traced")
        width, height = np.asarray(size)  # NumPy: indexing a JAX array is traced inside compiled code, its value is not
        return max(1, round(pixels * float(height) / float(width))), pixels
    if not (isinstance(pixels, tuple) and len(pixels) == 2 and min(pixels) > 0):
        raise InputError(f"pixels must be a positive integer or (height, width), got {pixels!r}")
    return pixels


def _colours(colours, n=None):
    colours = np.asarray(colours, np.float64)
    if colours.ndim != 2 or colours.shape[1] != 3 or n not in (None, len(colours)):
        raise InputError(f"colours must have shape ({'n' if n is None else n}, 3), got {colours.shape}")
    if not ((colours >= 0) & (colours <= 1)).all():
        raise InputError("colours must be between 0 and 1")
    return colours


def _shapes(shapes, n):
    shapes = (shapes,) * n if isinstance(shapes, str) else tuple(shapes)
    if len(shapes) != n:
        raise InputError(f"shapes must be one name or {n}, got {len(shapes)}")
    for shape in shapes:
        if shape not in SHAPES:
            raise InputError(unknown("shape", shape, SHAPES))
    return shapes
