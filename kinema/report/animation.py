"""Moving balls in a page: several motions side by side, in step, played by a small script in the page itself.

Positions are kept as 16-bit fractions of their range (a 65 000th of the box), so that 8 samples of 16 frames of 2 balls
take 3 KB a panel.
"""

import base64
import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinema.errors import InputError


@dataclass(frozen=True)
class Animation:
    """Motions played together, packed: `data` is plain JSON, so that evidence can keep it. Made by `animate`."""

    name: str
    data: dict[str, Any]
    alt: str
    caption: str = ""

    def html(self) -> str:
        """The figure; the page brings the script and the style."""
        panels = "".join(_panel_html(panel, self.alt) for panel in self.data["panels"])
        data = json.dumps(self.data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        return (
            f'<figure class="player wide" role="group" aria-label="{html.escape(self.alt)}">'
            f'<div class="panels">{panels}</div>'
            '<div class="controls"><button type="button" class="play" hidden>Play</button>'
            f'<label class="seek">Time <input type="range" min="0" max="{int(self.data["frames"]) - 1}" step="any" '
            'value="0"><span class="time"></span></label>'
            '<span class="samples">Sample <span class="which"></span>'
            '<button type="button" class="back" aria-label="previous sample" hidden>←</button>'
            '<button type="button" class="next" aria-label="next sample" hidden>→</button></span></div>'
            "<noscript><p>This moving picture needs JavaScript.</p></noscript>"
            + (f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else "")
            + f'<script type="application/json">{data}</script></figure>'
        )


def animate(
    panels: Mapping[str, Any],
    *,
    alt: str,
    caption: str = "",
    name: str = "motion",
    radius: Any = None,
    box: tuple[float, float] | None = None,
    dt: float | None = None,
    ghosts: Mapping[str, Any] | None = None,
    series: Mapping[str, Mapping[str, Any]] | None = None,
    remarks: Mapping[str, str] | None = None,
    samples: int = 6,
    seconds: float = 4.0,
    trail: float = 6.0,
) -> Animation:
    """Motions under their names, to be played side by side.

    A motion is a `Trajectory` of balls, or positions `(frames, balls, 2)` or `(samples, frames, balls, 2)`; all have
    the same shape, and the first `samples` are kept. `radius` `(balls,)` or `(samples, balls)`, `box` and `dt` come
    from a trajectory where it has them; without a box there are no walls. `ghosts` and `series` (numbers
    `(samples, frames)`) belong to the panel of the same name. One round takes `seconds`; trails last `trail` frames.

    Raises:
        InputError: no panels, shapes that differ or do not fit, nothing finite, names without a panel, no `alt`.
    """
    if not panels:
        raise InputError("panels is empty; give at least one name with its motion")
    if not alt.strip():
        raise InputError("alt is empty; say in one sentence what moves")
    for what, mapping in (("ghosts", ghosts), ("series", series), ("remarks", remarks)):
        if strange := set(mapping or {}) - set(panels):
            raise InputError(f"{what} names {sorted(strange)}, but the panels are {list(panels)}")
    first = next(iter(panels.values()))
    dt, radius, box = _from_trajectory(first, dt, radius, box)
    x = {title: _positions(title, motion)[:samples] for title, motion in panels.items()}
    shape = next(iter(x.values())).shape
    ghost = {title: _positions(f"ghost of {title}", motion)[:samples] for title, motion in (ghosts or {}).items()}
    for title, array in [*x.items(), *ghost.items()]:
        if array.shape != shape:
            raise InputError(f"all motions need one shape, {title!r} has {array.shape}, the first {shape}")
    radii = _radii(radius, shape, x)
    points = [*x.values(), *ghost.values()]
    low, high = float(min(map(np.nanmin, points))), float(max(map(np.nanmax, points)))
    ends = float(radii.min()), float(radii.max())
    box = None if box is None else (float(box[0]), float(box[1]))
    data = {
        **{"samples": shape[0], "frames": shape[1], "balls": shape[2], "dt": float(dt)},
        **{"seconds": float(seconds), "trail": float(trail), "box": box, "view": _view(points, ends[1], box)},
        **{"range": (low, high), "radius": {"values": _pack(radii, *ends), "range": ends}},
        "panels": [
            {
                **{"title": title, "remark": (remarks or {}).get(title, ""), "x": _pack(array, low, high)},
                **({"ghost": _pack(ghost[title], low, high)} if title in ghost else {}),
                "series": [_series(k, v, shape) for k, v in (series or {}).get(title, {}).items()],
            }
            for title, array in x.items()
        ],
    }
    return Animation(name, json.loads(json.dumps(data, allow_nan=False)), alt, caption)


def _view(points: list[np.ndarray], reach: float, box: tuple[float, float] | None) -> list[float]:
    """Left, bottom, right, top of what is shown: the walls and what strays from them, within reason."""
    low = np.min([np.nanmin(array.reshape(-1, 2), 0) for array in points], 0) - reach
    high = np.max([np.nanmax(array.reshape(-1, 2), 0) for array in points], 0) + reach
    if box is not None:
        beyond = max(0.0, *-low, *(high - box))
        room = float(np.clip(beyond, 0.03 * max(box), 0.25 * max(box)))
        low, high = np.array([-room, -room]), np.add(box, room)
    return [*map(float, low), *map(float, high)]


def _from_trajectory(motion, dt, radius, box):
    """What was not given, from the first motion's times and constants and from its world."""
    if hasattr(motion, "states"):
        ts = np.asarray(motion.ts).reshape(-1, len(motion))[0]
        dt = float(ts[1] - ts[0]) if dt is None and ts.size > 1 else dt
        radius = motion.constants.get("radius") if radius is None else radius
        box = _walls(motion.meta) if box is None else box
    return (1.0 if dt is None else dt), radius, box


def _walls(meta: Mapping[str, Any]):
    """The box of the world that a trajectory names, if that world has walls."""
    from kinema.simulate import make, worlds

    parameters = {name: value for name, value in meta.get("parameters", {}).items() if value is not None}
    if meta.get("world") not in worlds():
        return None
    try:
        world = make(meta["world"], **parameters)
    except InputError:  # a trajectory from a file may say anything
        return None
    return getattr(world, "size", None) if getattr(world, "walls", False) else None


def _positions(title: str, motion) -> np.ndarray:
    states = getattr(motion, "states", motion)
    x = np.asarray(states["x"] if isinstance(states, Mapping) else states, np.float64)
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] != 2 or not x.size:
        raise InputError(f"{title!r} must have shape (frames, balls, 2) or (samples, frames, balls, 2), got {x.shape}")
    if np.isinf(x).any() or np.isnan(x).all():
        raise InputError(f"{title!r} holds infinite positions or none at all")
    return x


def _radii(radius, shape, x) -> np.ndarray:
    samples, _, balls, _ = shape
    if radius is None:
        extent = max(np.nanmax(array) - np.nanmin(array) for array in x.values())
        radius = 0.02 * extent if extent > 0 else 1.0
    radius = np.asarray(radius, np.float64)
    radius = np.full(balls, radius) if radius.ndim == 0 else radius[:samples] if radius.ndim == 2 else radius
    if radius.shape not in ((balls,), (samples, balls)) or not (radius > 0).all():
        raise InputError(f"radius must be positive, of shape {(balls,)} or {(samples, balls)}, got {radius.shape}")
    return radius


def _pack(values: np.ndarray, low: float, high: float) -> str:
    """16-bit fractions of [low, high], little-endian, base 64; the largest number stands for NaN."""
    span = (high - low) or 1.0
    fractions = np.where(np.isnan(values), 65535, np.round(np.clip((values - low) / span, 0, 1) * 65534))
    return base64.b64encode(fractions.astype("<u2").tobytes()).decode()


def _series(name: str, values: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    values = np.atleast_2d(np.asarray(values, np.float64))[: shape[0]]
    if values.shape != shape[:2] or not np.isfinite(values).all():
        raise InputError(f"series {name!r} must be finite, of shape {shape[:2]}, got {values.shape}")
    low, high = float(values.min()), float(values.max())
    if math.isclose(low, high, rel_tol=1e-3):  # a conserved number is a flat line, not its rounding enlarged
        room = 0.05 * max(abs(low), abs(high)) or 1.0
        low, high = low - room, high + room
    return {"name": name, "values": _pack(values, low, high), "range": (low, high)}


def _panel_html(panel: Mapping[str, Any], alt: str) -> str:
    title = html.escape(panel["title"])
    names = [html.escape(series["name"]) for series in panel["series"]]
    lines = "".join(
        f'<div class="series"><span>{name}</span><canvas role="img" aria-label="{name} over time"></canvas>'
        "<output></output></div>"
        for name in names
    )
    remark = f'<p class="remark">{html.escape(panel["remark"])}</p>' if panel["remark"] else ""
    return (
        f'<div class="panel"><p class="title">{title}</p>'
        f'<canvas role="img" aria-label="{title}: {html.escape(alt)}"></canvas>{lines}{remark}</div>'
    )
