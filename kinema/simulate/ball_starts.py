"""States that balls start from: a gas in its box, one ball launched, two balls on one line."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from kinema.errors import InputError

Range = tuple[float, float]

_TRIES = 100_000
# The paper's pictures: a launched ball stays this many frames if it can, two balls meet this many after the first frame
# and before the last one; margins are shares of the box.
_STAY, _BEFORE, _AFTER, _MARGIN, _DROP = 24, 8, 8, 0.05, 0.1


class Gas(eqx.Module):
    """Positions uniform without overlap; velocities of a fixed energy, or speeds uniform in a range.

    `energy="fixed"`: normal momenta scaled to sum m |v|^2 = sum m, the uniform law on the energy surface. Without
    gravity it is stationary (Liouville): every later frame has the same law.

    Raises:
        InputError: energy neither "fixed" nor (low, high) with 0 <= low < high.
    """

    energy: str | Range = eqx.field(default="fixed", static=True)

    def __check_init__(self):
        if self.energy != "fixed":
            check_range("energy", self.energy, or_else="'fixed'")

    def __call__(self, world: Any, key: PRNGKeyArray) -> dict[str, Float[Array, "n 2"]]:
        key_place, key_speed = jr.split(key)
        low, high = world.radius[:, None], world.size - world.radius[:, None]

        def place(key):
            return low + (high - low) * jr.uniform(key, high.shape, high.dtype)

        x = first_accepted(place, lambda x: pair_gaps(x, world.radius).min() > 0, key_place)
        return {"x": x, "v": self._velocities(world.mass, key_speed)}

    def _velocities(self, mass, key):
        if isinstance(self.energy, str):
            momentum = jr.normal(key, (len(mass), 2), mass.dtype)
            v = momentum / jnp.sqrt(mass)[:, None]
            return v * jnp.sqrt(mass.sum() / (momentum**2).sum())
        key_speed, key_angle = jr.split(key)
        speed = jr.uniform(key_speed, mass.shape, mass.dtype, *self.energy)
        angle = jr.uniform(key_angle, mass.shape, mass.dtype, 0, 2 * jnp.pi)
        return speed[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


class Launch(eqx.Module):
    """One ball to the right at a speed uniform in a range, from where it stays in the box for 24 frames if it can.

    Raises:
        InputError: speed is no range (low, high) with 0 <= low < high.
    """

    speed: Range = eqx.field(static=True)

    def __check_init__(self):
        check_range("speed", self.speed)

    def __call__(self, world: Any, key: PRNGKeyArray) -> dict[str, Float[Array, "1 2"]]:
        key_speed, key_place = jr.split(key)
        return launched(world, jr.uniform(key_speed, (1,), world.radius.dtype, *self.speed), key_place)


class HeadOn(eqx.Module):
    """Two balls at one height that meet after frame 8 and at least 8 frames before the last; speeds uniform in a range.

    Raises:
        InputError: speed is no range (low, high) with 0 <= low < high.
    """

    speed: Range = eqx.field(static=True)

    def __check_init__(self):
        check_range("speed", self.speed)

    def __call__(self, world: Any, key: PRNGKeyArray) -> dict[str, Float[Array, "2 2"]]:
        key_speed, key_place = jr.split(key)

        def draw(key):
            return jr.uniform(key, (2,), world.radius.dtype, *self.speed)

        return meeting(world, first_accepted(draw, lambda speed: can_meet(world, speed), key_speed), key_place)


def launched(world: Any, speed: Float[Array, "1"], key: PRNGKeyArray) -> dict[str, Float[Array, "1 2"]]:
    """A ball moving right; near the top if the world has gravity, else at any height."""
    key_x, key_y = jr.split(key)
    r, (width, height) = world.radius[0], world.size
    stay = width - r - _STAY * world.dt * speed[0]
    x = jr.uniform(key_x, (), r.dtype, r, jnp.where(stay < r, r + _MARGIN * width, stay))
    top = (1 - _MARGIN) * height - r
    y = jr.uniform(key_y, (), r.dtype, top - _DROP * height if world.falls else r + _MARGIN * height, top)
    return {"x": jnp.stack([x, y])[None], "v": jnp.stack([speed[0], jnp.zeros_like(r)])[None]}


def can_meet(world: Any, speed: Float[Array, "2"]) -> Bool[Array, ""]:
    """Whether two balls inside the box can be 8 frames apart at these speeds towards each other."""
    return _BEFORE * world.dt * speed.sum() <= world.size[0] - 2 * world.radius.sum()


def meeting(world: Any, speed: Float[Array, "2"], key: PRNGKeyArray) -> dict[str, Float[Array, "2 2"]]:
    """Ball 0 moving right, ball 1 moving left at one height; the time of the hit is uniform."""
    key_time, key_x, key_y = jr.split(key, 3)
    dtype, reach, closing = world.radius.dtype, world.radius.sum(), speed.sum()
    room = world.size[0] - 2 * reach
    latest = (world.frames - _AFTER) * world.dt
    latest = jnp.where(closing > 0, jnp.minimum(latest, room / jnp.where(closing > 0, closing, 1)), latest)
    t = jr.uniform(key_time, (), dtype, _BEFORE * world.dt, latest)
    distance = reach + closing * t
    left = jr.uniform(key_x, (), dtype, world.radius[0], world.size[0] - world.radius[1] - distance)
    edge = _MARGIN * world.size[1] + world.radius.max()
    y = jr.uniform(key_y, (), dtype, edge, world.size[1] - edge)
    x = jnp.stack([jnp.stack([left, y]), jnp.stack([left + distance, y])])
    return {"x": x, "v": jnp.stack([speed, jnp.zeros_like(speed)], -1) * jnp.array([[1], [-1]], dtype)}


def first_accepted(draw: Callable[[Any], PyTree], accept: Callable[[PyTree], Array], key: PRNGKeyArray) -> PyTree:
    """The first of `draw(key_0), draw(key_1), ...` that is accepted; the last of 100 000 if none is."""

    def again(carry):
        tries, _, _ = carry
        sample = draw(jr.fold_in(key, tries))
        return tries + 1, accept(sample), sample

    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(draw, key))
    unfit = jnp.asarray(0), jnp.asarray(False), empty
    return jax.lax.while_loop(lambda carry: ~carry[1] & (carry[0] < _TRIES), again, unfit)[2]


def pair_gaps(x: Float[Array, "n 2"], radius: Float[Array, " n"]) -> Float[Array, "n n"]:
    """Gaps of balls i < j, infinite elsewhere; negative where they overlap."""
    d = x[None] - x[:, None]
    index = jnp.arange(len(radius))
    upper = index[:, None] < index
    distance = jnp.sqrt(jnp.where(upper, (d * d).sum(-1), 1))
    return jnp.where(upper, distance - radius[:, None] - radius, jnp.inf)


def check_range(name: str, value: Any, or_else: str = "") -> None:
    """Refuse what is not (low, high) with 0 <= low < high."""
    accepted = f"{or_else} or " if or_else else ""
    try:
        low, high = value
        good = 0 <= low < high
    except (TypeError, ValueError):
        good = False
    if not good:
        raise InputError(f"{name} must be {accepted}(low, high) with 0 <= low < high, got {value!r}")
