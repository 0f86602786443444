"""Named worlds of hard balls: a gas in a box, and the three of the physical-law study."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from kinema.errors import InputError
from kinema.simulate.ball_starts import Gas, HeadOn, Launch, Range
from kinema.simulate.balls import Balls, known
from kinema.simulate.world import world

_PROBES = 4096


@world("collisions")
def collisions(
    balls: int = 2,
    radius: Any = 0.12,
    mass: Any = 1.0,
    energy: str | Sequence[float] = "fixed",
    size: Sequence[float] = (1.0, 1.0),
    gravity: Any = 0.0,
    frames: int = 16,
    dt: float = 0.05,
    max_events: int | None = None,
) -> Balls:
    """A gas of elastic balls in a box, placed at random.

    >>> world = collisions(balls=3, radius=0.1)
    >>> world.mass.shape, float(world.ts[-1])
    ((3,), 0.75)

    Args:
        radius, mass: one number, or one a ball.
        energy: "fixed" (unit rms speed; stationary without gravity), or (low, high): speeds uniform in this range.
        max_events: bound on the hits of one trajectory; None: 30 + 5 times what the kinetic theory of gases expects.

    Raises:
        InputError: a value that the world cannot have, balls that do not fit the box.
    """
    if not (isinstance(balls, int) and balls > 0):
        raise InputError(f"balls must be a positive integer, got {balls!r}")
    made = _balls(
        radius=_per_ball("radius", radius, balls),
        mass=_per_ball("mass", mass, balls),
        size=size,
        gravity=gravity,
        start=Gas(energy if isinstance(energy, str) else _range(energy)),
        frames=frames,
        dt=dt,
        max_events=0 if max_events is None else max_events,
        walls=True,
    )
    if known(made.radius, made.size):
        _check_fit(np.asarray(made.radius), np.asarray(made.size))
    if max_events is not None:
        return made
    if not known(made.radius, made.mass, made.size, made.gravity):
        differ = "radius, mass, size or gravity differ by trajectory (are traced)"
        raise InputError(f"max_events must be given where {differ}")
    return replace(made, max_events=30 + math.ceil(5 * expected_hits(made, (frames - 1) * dt)))


@world("uniform_motion")
def uniform_motion(
    radius: Any = 1.0,
    speed: Sequence[float] = (1.0, 4.0),
    size: Sequence[float] = (10.0, 10.0),
    frames: int = 32,
    dt: float = 0.1,
) -> Balls:
    """One ball of density 1 that moves right through a picture without walls.

    Raises:
        InputError: a value that the world cannot have.
    """
    return _open(radius, 1, Launch(_range(speed)), size, 0.0, frames, dt)


@world("parabola")
def parabola(
    radius: Any = 1.0,
    speed: Sequence[float] = (1.0, 4.0),
    gravity: Any = 2.5,
    size: Sequence[float] = (10.0, 10.0),
    frames: int = 32,
    dt: float = 0.1,
) -> Balls:
    """One ball of density 1 thrown to the right near the top of a picture without walls.

    Raises:
        InputError: a value that the world cannot have.
    """
    return _open(radius, 1, Launch(_range(speed)), size, gravity, frames, dt)


@world("head_on")
def head_on(
    radius: Any = 1.0,
    speed: Sequence[float] = (1.0, 4.0),
    size: Sequence[float] = (10.0, 10.0),
    frames: int = 32,
    dt: float = 0.1,
) -> Balls:
    """Two balls of density 1 that meet on a horizontal line, without walls.

    Raises:
        InputError: a value that the world cannot have, balls too wide for 8 frames before the hit.
    """
    made = _open(radius, 2, HeadOn(_range(speed)), size, 0.0, frames, dt)
    if known(made.radius, made.size) and not 16 * dt * speed[0] <= made.size[0] - 2 * made.radius.sum():
        raise InputError(f"radius must leave room for 8 frames of motion in a box of {made.size[0]}, got {radius}")
    return made


def expected_hits(world: Balls, span: float) -> float:
    """Mean number of hits within `span`, from kinetic theory: exact for a dilute gas.

    Wall: E|v_x| / (L - 2 r) a ball and axis. Pair: 2 s E|u| / area. Dense gases hit more often by
    (1 - 7 f / 16) / (1 - f)^2, f the filled share of the area. Gravity adds the energy of a fall through the box.
    """
    radius, mass, size = (np.asarray(a, np.float64) for a in (world.radius, world.mass, world.size))
    gas = world.start
    fixed = not isinstance(gas, Gas) or gas.energy == "fixed"
    speed2 = mass.sum() / (len(mass) * mass) if fixed else np.full(len(mass), float(gas.energy[1]) ** 2)
    spread = np.sqrt(speed2 / 2 + float(world.gravity) * size[1])
    free = size - 2 * radius[:, None]
    walls = (np.sqrt(2 / np.pi) * spread[:, None] / free).sum()
    filled = min(np.pi * (radius**2).sum() / size.prod(), 0.8)
    reach, relative = radius[:, None] + radius, np.hypot(spread[:, None], spread)
    area = np.sqrt(free.prod(-1)[:, None] * free.prod(-1))
    pairs = (
        np.triu(2 * reach * np.sqrt(np.pi / 2) * relative / area, 1).sum() * (1 - 7 * filled / 16) / (1 - filled) ** 2
    )
    return span * (walls + pairs)


def _open(radius, balls, start, size, gravity, frames, dt):
    """Density 1, no walls; two balls hit at most once."""
    radius = _per_ball("radius", radius, balls)
    return _balls(
        radius=radius,
        mass=jnp.pi * radius**2,
        size=size,
        gravity=gravity,
        start=start,
        frames=frames,
        dt=dt,
        max_events=balls - 1,
        walls=False,
    )


def _balls(*, size, gravity, **rest):
    size, gravity = jnp.asarray(size, float), jnp.asarray(gravity, float)
    return Balls(size=size, gravity=gravity, falls=not known(gravity) or bool(gravity != 0), **rest)


def _range(value: Any) -> Range:
    """A tuple where JSON has a list; what is none is refused by whom it is for."""
    return tuple(value) if isinstance(value, Sequence) else value  # pyright: ignore[reportReturnType]


def _per_ball(name, value, balls):
    value = jnp.asarray(value, float)
    if value.shape not in ((), (balls,)):
        raise InputError(f"{name} must be one number or {balls}, got shape {value.shape}")
    return jnp.broadcast_to(value, (balls,))


def _check_fit(radius, size):
    """Refuse balls that random placement will not find room for; the same draws each time."""
    draws = np.random.default_rng(0).uniform(radius[:, None], size - radius[:, None], (_PROBES, len(radius), 2))
    distance = np.linalg.norm(draws[:, None] - draws[:, :, None], axis=-1) + 10 * size.max() * np.eye(len(radius))
    if not (distance > radius[:, None] + radius).all((1, 2)).any():
        raise InputError(
            f"the balls do not fit: none of {_PROBES} random placements of radius {radius.tolist()} in a box of "
            f"{size.tolist()} is free of overlap; make them smaller or fewer"
        )
