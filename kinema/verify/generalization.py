"""Does a model of motion know the law, or its nearest training case? Scenes to train and to test on, and errors.

Worlds: "uniform" motion, "parabola", and "collision" (two balls on one line): 10 x 10, 32 frames of 0.1, density 1. A
regime says which radii and speeds occur; out of distribution they are below or above those trained on.

Reference: B. Kang et al., How Far is Video Generation from World Model: A Physical Law Perspective, ICML 2025.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from kinema.errors import InputError, choose
from kinema.motion import Trajectory
from kinema.simulate import Balls, head_on, parabola, uniform_motion
from kinema.simulate.ball_starts import can_meet, first_accepted, launched, meeting
from kinema.simulate.world import nameless

Bands = tuple[tuple[float, float], ...]  # a value is uniform in their union

_WORLDS = {"uniform": uniform_motion, "parabola": parabola, "collision": head_on}
_SHAPES = ("disc", "square")
_PICTURE = 10.0
# train, low, high
_SPEED = {"train": (1.0, 4.0), "low": (0.0, 0.8), "high": (4.5, 6.0)}
_RADIUS = {
    "uniform": {"train": (0.7, 1.4), "low": (0.3, 0.6), "high": (1.5, 2.0)},
    "parabola": {"train": (0.7, 1.4), "low": (0.3, 0.6), "high": (1.5, 2.0)},
    "collision": {"train": (0.5, 1.5), "low": (0.3, 0.4), "high": (1.7, 2.0)},
}
_LEVELS = ("r1", "v1", "r1 r2", "v1 v2", "r1 v1", "r1 r2 v1 v2")
# The two sets of each attribute; numbers stand for colours and shapes.
_SETS: dict[str, tuple[Any, Any]] = {
    "colour": (0, 1),
    "size": ((0.7, 1.05), (1.05, 1.4)),
    "velocity": ((1.0, 2.5), (2.5, 4.0)),
    "shape": (0, 1),
}


@dataclass(frozen=True)
class Regime:
    """Which scenes occur: bands of radius and of speed for each ball, a colour (a number) and a shape.

    `hole`: the speeds of both balls are never both within it. `mirrored`: every second scene moves to the left.
    """

    world: str
    radius: tuple[Bands, ...]
    speed: tuple[Bands, ...]
    hole: tuple[float, float] | None = None
    mirrored: bool = False
    colour: int = 0
    shape: str = "disc"


def regimes(world: str) -> dict[str, Regime]:
    """Regimes of "uniform", "parabola" or "collision" by name: "train", "low v", "high r v", "cross r1 r2", ...

    The name says what is out of distribution; in "cross" one ball has the low and the other the high values. Left out
    is what cannot be: two large fast balls are not 8 frames apart in the picture.

    >>> draw(regimes("collision")["low v1"], 64, key=jr.key(0)).states["x"].shape
    (64, 32, 2, 2)

    Raises:
        InputError: unknown world.
    """
    choose(_WORLDS, world, "world")
    if world != "collision":
        levels = {"r": ("r1",), "v": ("v1",), "r v": ("r1", "v1")}
        out = {
            f"{side} {name}": dict.fromkeys(level, side) for side in ("low", "high") for name, level in levels.items()
        }
    else:
        out = {f"{side} {level}": dict.fromkeys(level.split(), side) for side in ("low", "high") for level in _LEVELS}
        low, high = "low", "high"
        out["cross r1 r2"] = {"r1": low, "r2": high}
        out["cross v1 v2"] = {"v1": low, "v2": high}
        out["cross r1 r2 v1 v2"] = {"r1": low, "r2": high, "v1": low, "v2": high}
        out["cross r2 r1 v1 v2"] = {"r1": high, "r2": low, "v1": low, "v2": high}
    found = {name: _regime(world, sides) for name, sides in ({"train": {}} | out).items()}
    return {name: regime for name, regime in found.items() if _possible(regime)}


def gap(*bands: tuple[float, float]) -> dict[str, Regime]:
    """Uniform motion: "train" on speeds in the bands, "test" between them.

    Raises:
        InputError: fewer than two bands, or bands that do not follow each other.
    """
    ends = [end for band in bands for end in band]
    if len(bands) < 2 or sorted(ends) != ends:
        raise InputError(f"bands must be two or more (low, high) in increasing order, got {bands}")
    between = tuple((below[1], above[0]) for below, above in pairwise(bands))
    train = regimes("uniform")["train"]
    return {"train": replace(train, speed=(tuple(bands),)), "test": replace(train, speed=(between,))}


def hole(low: float, high: float) -> dict[str, Regime]:
    """Collision: "train" without both speeds in [low, high], "test" with both in it.

    Raises:
        InputError: low not below high.
    """
    if not low < high:
        raise InputError(f"low must be below high, got {low} and {high}")
    train = regimes("collision")["train"]
    return {"train": replace(train, hole=(low, high)), "test": replace(train, speed=(((low, high),),) * 2)}


def flip() -> dict[str, Regime]:
    """Uniform motion: "train" on fast balls to the right, "mirrored" on the same to both sides, "test" on slow ones."""
    train = replace(regimes("uniform")["train"], speed=(((2.5, 4.0),),))
    return {"train": train, "mirrored": replace(train, mirrored=True), "test": replace(train, speed=(((1.0, 2.5),),))}


@dataclass(frozen=True)
class Conflict:
    """Two attributes of a ball, each in one of two sets: trained on (0, 0) and (1, 1), tested on (0, 1) and (1, 0)."""

    first: str
    second: str

    @property
    def train(self) -> tuple[Regime, Regime]:
        return self._case(0, 0), self._case(1, 1)

    @property
    def test(self) -> tuple[Regime, Regime]:
        return self._case(0, 1), self._case(1, 0)

    def shift(self, attribute: str, case: int, given: Float[Array, " n"], made: Float[Array, " n"]) -> float:
        """How far `attribute` moved from its given to its made value, as a share of the distance of its sets.

        In test `case`, towards the training case that shares the other attribute; what moves less has priority. Colour
        and shape are numbers from 0 (first set) to 1 (second).

        Raises:
            InputError: not one of the two attributes, case not 0 or 1.
        """
        if attribute not in (self.first, self.second) or case not in (0, 1):
            known = f"{self.first!r} or {self.second!r} and case 0 or 1"
            raise InputError(f"attribute must be {known}, got {attribute!r} and {case}")
        here = case if attribute == self.first else 1 - case
        middles = [float(np.mean(values)) for values in _SETS[attribute]]
        return float(jnp.mean(made - given)) / (middles[1 - here] - middles[here])

    def _case(self, *which: int) -> Regime:
        regime = regimes("uniform")["train"]
        for attribute, i in zip((self.first, self.second), which):
            value = _SETS[attribute][i]
            match attribute:
                case "colour":
                    regime = replace(regime, colour=value)
                case "shape":
                    regime = replace(regime, shape=_SHAPES[value])
                case "size":
                    regime = replace(regime, radius=((value,),))
                case "velocity":
                    regime = replace(regime, speed=((value,),))
        return regime


def conflict(first: str, second: str) -> Conflict:
    """The conflict of two attributes out of "colour", "size", "velocity", "shape".

    Raises:
        InputError: unknown attribute, or twice the same.
    """
    for attribute in (first, second):
        choose(_SETS, attribute, "attribute")
    if first == second:
        raise InputError(f"a conflict needs two attributes, got {first!r} twice")
    return Conflict(first, second)


def draw(regime: Regime, n: int, *, key: PRNGKeyArray) -> Trajectory:
    """`n` exact trajectories of a regime. Constants: radius, mass, speed (n, balls), colour, shape (0 disc, 1 square).

    Raises:
        InputError: n not positive.
    """
    if not n > 0:
        raise InputError(f"n must be positive, got {n}")
    world = _WORLDS[regime.world]()
    bands = jnp.array(regime.radius), jnp.array(regime.speed)
    hole = jnp.array(regime.hole or (1.0, 0.0))
    out, constants = _draw(nameless(world), *bands, hole, jnp.array(regime.mirrored), jr.split(key, n))
    labels = {"colour": jnp.full(n, regime.colour), "shape": jnp.full(n, _SHAPES.index(regime.shape))}
    counts = {"hits": out.hits, "pair_hits": out.pair_hits}
    meta = {"world": world.name, "units": world.units}
    return Trajectory(world.ts, out.states, constants | labels | counts, meta, single=False)


class VelocityError(NamedTuple):
    """Mean |v^ - v| over trajectories, balls and intervals that count; `before` and `after` the first hit.

    NaN where no interval counts. `unseen`: share of the intervals with a true ball where the prediction shows none.
    """

    mean: float
    before: float
    after: float
    unseen: float


def velocity_error(
    pred: Trajectory, true: Trajectory, *, given: int = 3, seen: Bool[Array, "n frames balls"] | None = None
) -> VelocityError:
    """Error of velocities, as differences of positions between frames, from the last `given` frame on.

    An interval counts while the true ball is wholly inside the 10 x 10 picture, does not change its velocity (the law's
    gravity apart), and the prediction has it (`seen`, from `simulate.parse`).

    Raises:
        InputError: shapes differ, `true` without velocities or radius, given not within 1 .. frames - 1.
    """
    x, y = pred.states["x"], true.states["x"]
    if x.shape != y.shape or y.ndim != 4:
        raise InputError(f"positions must have the same shape (n, frames, balls, 2), got {x.shape} and {y.shape}")
    if "v" not in true.states or "radius" not in true.constants:
        raise InputError('true must have velocities "v" and the constant "radius"')
    if not 1 <= given < x.shape[1]:
        raise InputError(f"given must be within 1 .. {x.shape[1] - 1}, got {given}")
    gaps = np.diff(np.asarray(true.ts, np.float64))[:, None]
    error = jnp.linalg.norm((jnp.diff(x, axis=1) - jnp.diff(y, axis=1)) / gaps[..., None], axis=-1)
    turns = _turns(true.states["v"])
    before = jnp.cumsum(turns, axis=1) == 0
    radius = true.constants["radius"][:, None, :, None]
    inside = ((y >= radius) & (y <= _PICTURE - radius)).all(-1)
    judged = inside[:, 1:] & inside[:, :-1] & ~turns & (jnp.arange(1, x.shape[1]) >= given)[:, None]
    shown = jnp.ones(judged.shape, bool) if seen is None else seen[:, 1:] & seen[:, :-1]
    counts = judged & shown
    parts = (_mean(error, counts), _mean(error, counts & before), _mean(error, counts & ~before), _mean(~shown, judged))
    return VelocityError(*map(float, parts))


@eqx.filter_jit
def _draw(world: Balls, radius, speed, hole, mirrored, keys):
    """Bands (balls, bands, 2) of radius and speed, and `hole` (2,), are values: one compilation serves all regimes."""
    balls = len(radius)

    def values(key):
        key_radius, key_speed = jr.split(key)
        return _in_bands(radius, key_radius), _in_bands(speed, key_speed)

    def scene(radius):
        return world.given({"radius": radius, "mass": jnp.pi * radius**2})

    def accept(sample):
        radius, speed = sample
        if balls == 1:
            return jnp.asarray(True)
        return can_meet(scene(radius), speed) & ~((speed >= hole[0]) & (speed <= hole[1])).all()

    def one(index, key):
        key_values, key_place = jr.split(key)
        radius, speed = first_accepted(values, accept, key_values)
        made = scene(radius)
        start = (launched if balls == 1 else meeting)(made, speed, key_place)
        left = mirrored & (index % 2 == 1) & jnp.array([True, False])
        x, v = jnp.where(left, world.size - start["x"], start["x"]), jnp.where(left, -start["v"], start["v"])
        return made.replay({"x": x, "v": v}, world.ts), made.constants | {"speed": speed}

    return jax.vmap(one)(jnp.arange(len(keys)), keys)


def _in_bands(bands, key):
    """(balls,) values, each uniform in the union of its bands."""
    low, length = bands[..., 0], bands[..., 1] - bands[..., 0]
    ends = jnp.cumsum(length, -1)
    place = jr.uniform(key, low.shape[:1]) * ends[:, -1]
    band = jnp.minimum((place[:, None] >= ends).sum(-1, keepdims=True), low.shape[1] - 1)
    return jnp.take_along_axis(low + place[:, None] - (ends - length), band, 1)[:, 0]


def _turns(v):
    """Intervals in which a velocity changes by other than gravity, which most intervals show."""
    change = jnp.diff(v, axis=1)
    usual = jnp.median(change, axis=(0, 1, 2))
    return (jnp.abs(change - usual) > 1e-4 * jnp.abs(v).max()).any(-1)


def _mean(x, where):
    return jnp.where(where, x, 0).sum() / where.sum()


def _regime(world, sides):
    balls = 2 if world == "collision" else 1
    radius = tuple((_RADIUS[world][sides.get(f"r{i + 1}", "train")],) for i in range(balls))
    return Regime(world, radius, tuple((_SPEED[sides.get(f"v{i + 1}", "train")],) for i in range(balls)))


def _possible(regime):
    """Whether the smallest and slowest balls can meet after 8 frames."""
    smallest, slowest = (np.array([bands[0][0] for bands in side]) for side in (regime.radius, regime.speed))
    return len(smallest) == 1 or bool(can_meet(_WORLDS[regime.world](radius=smallest), jnp.asarray(slowest)))
