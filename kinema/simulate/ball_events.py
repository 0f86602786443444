"""Exact motion of hard balls: from one hit to the next, every hit time in closed form, many worlds in one loop.

Between hits x += v dt + a dt^2 / 2, v += a dt. A step goes to the next hit or the next frame, whichever is first; a
frame is written before a hit at the same instant. Arrays are components first, then balls, then worlds, so that the
innermost loop of every operation runs over worlds; there are no gathers. Times are local, since the last frame: a long
run loses nothing.

Two balls meet when |d + u t| = s, with d, u their relative position and velocity and s the sum of radii. Gravity
cancels in u, so this is a quadratic, solved with the cross product d x u (grazing hits stay right in float32) and
without a difference that cancels.

Reference: B. Kang et al., How Far is Video Generation from World Model (2025), for the world; the engine is ours.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

# A pair hit may change the relative speed by at most this share to bring the energy back to that of the first state.
_FEEDBACK = 1e-3


class Rules(NamedTuple):
    """What is known before compilation."""

    walls: bool
    falls: bool
    max_events: int


class Bodies(NamedTuple):
    """Constants, worlds last; one world's worth (last axis 1) where all worlds share them."""

    radius: Float[Array, "n worlds"]
    mass: Float[Array, "n worlds"]
    size: Float[Array, "2 worlds"]
    gravity: Float[Array, " worlds"]


class Run(NamedTuple):
    """Exact states at the frames, worlds first. `done` is false where `max_events` did not reach the last frame."""

    x: Float[Array, "worlds frames n 2"]
    v: Float[Array, "worlds frames n 2"]
    wall_hits: Int[Array, " worlds"]
    pair_hits: Int[Array, " worlds"]
    done: Bool[Array, " worlds"]


class Step(NamedTuple):
    """What one step did: advanced by `dt`, then turned components at `walls` (-1 low, 1 high) or a pair of balls."""

    dt: Float[Array, " worlds"]
    walls: Float[Array, "2 n worlds"]
    pair: Bool[Array, " worlds"]
    first: Int[Array, " worlds"]
    second: Int[Array, " worlds"]


class _Now(NamedTuple):
    x: Array  # (2, n, worlds)
    v: Array
    left: Array  # (worlds,) time to the next frame
    frame: Array  # (worlds,) frames written
    wall_hits: Array
    pair_hits: Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def run(rules: Rules, bodies: Bodies, gaps: Float[Array, " frames"], x: Array, v: Array) -> Run:
    """Worlds from their states x, v (2, n, worlds) through frames that are `gaps` apart; the first comes after gaps[0].

    Values come from a loop that stops with the last world; derivatives (both modes) from one of fixed length
    frames + max_events, which also bounds the first. They hold between changes of the order of events. Under `vmap`
    all worlds are one flat batch.
    """
    return _over_worlds(rules)(bodies, gaps, x, v)


@run.defjvp
def _run_jvp(rules, primals, tangents):
    return jax.jvp(partial(_scan, rules), primals, tangents)


def log(
    rules: Rules, bodies: Bodies, span: Float[Array, ""], x: Array, v: Array
) -> tuple[Bool[Array, " worlds"], Step]:
    """Every step of worlds up to time `span`: (done, steps with a leading axis max_events + 1)."""
    gaps = span[None]
    first, energy = _start(gaps, x, v), _energy(bodies, x, v)
    last, steps = jax.lax.scan(
        lambda now, _: _advance(rules, bodies, gaps, energy, now), first, None, length=rules.max_events + 1
    )
    return last.frame == 1, steps


def _over_worlds(rules: Rules):
    """`_while`, with `vmap` made part of the worlds axis instead of a new axis: one loop, and one end, for all."""

    @custom_vmap
    def loop(bodies, gaps, x, v):
        return _while(rules, bodies, gaps, x, v)

    @loop.def_vmap
    def _(size, batched, bodies, gaps, x, v):
        worlds = max(a.shape[-1] for a in (*bodies, x, v))

        def merge(array, is_batched, shared):
            if not is_batched and shared and array.shape[-1] == 1:
                return array
            if not is_batched:
                array = jnp.broadcast_to(array, (size, *array.shape))
            array = jnp.moveaxis(jnp.broadcast_to(array, (*array.shape[:-1], worlds)), 0, -2)
            return array.reshape(*array.shape[:-2], size * worlds)

        bodies = Bodies(*(merge(a, b, shared=True) for a, b in zip(bodies, batched[0])))
        flat = loop(bodies, gaps, merge(x, batched[2], shared=False), merge(v, batched[3], shared=False))
        out = jax.tree.map(lambda a: a.reshape(size, worlds, *a.shape[1:]), flat)
        return out, jax.tree.map(lambda _: True, out)

    return loop


def _while(rules, bodies, gaps, x, v):
    def unfinished(carry):
        steps, now, *_ = carry
        return jnp.any(now.frame < gaps.shape[0]) & (steps < gaps.shape[0] + rules.max_events)

    def body(carry):
        steps, *rest = carry
        return (steps + 1, *_record(rules, bodies, gaps, energy, *rest))

    energy = _energy(bodies, x, v)
    return _finish(gaps, *jax.lax.while_loop(unfinished, body, (0, _start(gaps, x, v), *_frames(gaps, x)))[1:])


def _scan(rules, bodies, gaps, x, v):
    energy = _energy(bodies, x, v)

    def body(carry, _):
        return _record(rules, bodies, gaps, energy, *carry), None

    length = gaps.shape[0] + rules.max_events
    return _finish(gaps, *jax.lax.scan(body, (_start(gaps, x, v), *_frames(gaps, x)), None, length=length)[0])


def _start(gaps, x, v):
    zero = jnp.zeros(x.shape[-1], jnp.int32)
    return _Now(x, v, jnp.broadcast_to(gaps[0], zero.shape), zero, zero, zero)


def _frames(gaps, x):
    frames = jnp.zeros((x.shape[-1], gaps.shape[0], *x.shape[1::-1]), x.dtype)
    return frames, frames


def _record(rules, bodies, gaps, energy, now, xs, vs):
    """One step; a world that has reached a frame writes its row, one that is done writes nowhere."""
    new, _ = _advance(rules, bodies, gaps, energy, now)
    arrived = new.frame > now.frame
    row = jnp.arange(arrived.shape[0]), jnp.where(arrived, now.frame, gaps.shape[0])

    def write(frames, value):
        return frames.at[row].set(jnp.transpose(value), mode="drop", unique_indices=True)

    return new, write(xs, new.x), write(vs, new.v)


def _finish(gaps, now, xs, vs):
    return Run(xs, vs, now.wall_hits, now.pair_hits, now.frame >= gaps.shape[0])


def _advance(rules: Rules, bodies: Bodies, gaps: Array, energy: Array, now: _Now) -> tuple[_Now, Step]:
    """To the next hit or frame. A world that is done has no time left and stays as it is."""
    x, v, left, frame, *_ = now
    n, infinite = x.shape[1], jnp.full_like(left, jnp.inf)
    walls = _wall_times(rules, bodies, x, v) if rules.walls else None
    pairs = _pair_times(bodies, x, v).reshape(n * n, -1) if n > 1 else None
    t_wall = infinite if walls is None else walls.reshape(2 * n, -1).min(0)
    t_pair = infinite if pairs is None else pairs.min(0)
    t_hit = jnp.minimum(t_wall, t_pair)
    arrives = t_hit >= left
    dt = jnp.minimum(t_hit, left)
    x, v = _fly(rules, bodies, x, v, dt)

    wall_turn, pair_turn = ~arrives & (t_wall <= t_pair), ~arrives & (t_pair < t_wall)
    turned, sides = jnp.zeros(x.shape, bool), jnp.zeros_like(x)
    first = second = jnp.zeros_like(frame)
    if walls is not None:
        # All walls reached together: axes commute, so a corner is exact. The sign of v decides, so no wall hits twice.
        turned = wall_turn & (walls <= t_wall)
        sides, v = jnp.where(turned, jnp.sign(v), 0), jnp.where(turned, -v, v)
    if pairs is not None:
        order = jnp.arange(n * n, dtype=frame.dtype)[:, None]
        chosen = jnp.where(pairs == t_pair, order, n * n).min(0)
        first, second = chosen // n, chosen % n
        v = jnp.where(pair_turn, _collide(bodies, energy, x, v, first, second, pair_turn), v)

    written = arrives & (frame < gaps.shape[0])
    frame = frame + written
    next_gap = jnp.where(frame < gaps.shape[0], gaps[jnp.minimum(frame, gaps.shape[0] - 1)], 0)
    left = jnp.where(written, next_gap, left - dt)
    wall_hits = now.wall_hits + turned.sum((0, 1), dtype=frame.dtype)
    return _Now(x, v, left, frame, wall_hits, now.pair_hits + pair_turn), Step(dt, sides, pair_turn, first, second)


def _fly(rules, bodies, x, v, dt):
    if not rules.falls:
        return x + v * dt, v
    a = jnp.stack([jnp.zeros_like(bodies.gravity), -bodies.gravity])[:, None]
    return x + dt * (v + a * (dt / 2)), v + a * dt


def _wall_times(rules, bodies, x, v):
    """(2, n, worlds) times until a component meets the wall it moves to; never an earlier one, whatever the overlap."""
    low = jnp.maximum(x - bodies.radius, 0)
    high = jnp.maximum(bodies.size[:, None] - bodies.radius - x, 0)
    times = _quotient(jnp.where(v < 0, low, high), jnp.abs(v), v != 0)
    if not rules.falls:
        return times
    return jnp.stack([times[0], _fall_times(low[1], high[1], v[1], bodies.gravity)])


def _fall_times(low, high, v, gravity):
    """Floor at 2 low / (q - v) or (v + q) / g, with q^2 = v^2 + 2 g low; the ceiling if v^2 > 2 g high."""
    q = _root(v * v + 2 * gravity * low, True)
    floor = jnp.where(v < 0, _quotient(2 * low, q - v, v < 0), _quotient(v + q, gravity, gravity > 0))
    rest = v * v - 2 * gravity * high
    reached = (v > 0) & (rest > 0)
    return jnp.minimum(floor, _quotient(2 * high, v + _root(rest, reached), reached))


def _pair_times(bodies, x, v):
    """(n, n, worlds) times until balls i < j meet; infinite elsewhere."""
    d = x[:, None] - x[:, :, None]
    u = v[:, None] - v[:, :, None]
    s = bodies.radius[:, None] + bodies.radius
    approach, speed2, cross = _dot(d, u), _dot(u, u), d[0] * u[1] - d[1] * u[0]
    discriminant = speed2 * s * s - cross * cross
    index = jnp.arange(x.shape[1])
    upper = (index[:, None] < index)[..., None]
    hits = upper & (approach < 0) & (discriminant > 0)
    distance = _root(_dot(d, d), hits)
    return _quotient(jnp.maximum((distance - s) * (distance + s), 0), _root(discriminant, hits) - approach, hits)


def _collide(bodies, energy, x, v, first, second, real):
    """Velocities after the balls `first` and `second` of each world have exchanged momentum along their line."""
    index = jnp.arange(x.shape[1])[:, None]
    is_first, is_second = (index == first).astype(x.dtype), (index == second).astype(x.dtype)
    sign = is_second - is_first
    d, u = (x * sign).sum(1), (v * sign).sum(1)
    m1, m2 = (bodies.mass * is_first).sum(0), (bodies.mass * is_second).sum(0)
    total = m1 + m2
    # Divided by d.d, not s^2: a reflection that keeps |u| even where |d| is not s to the last bit.
    after = u - 2 * _dot(d, u) / jnp.where(real, _dot(d, d), 1) * d
    relative = jnp.where(real, m1 * m2 / total * _dot(after, after), 1)
    lost = (energy - _energy(bodies, x, v)) / jnp.maximum(relative, jnp.finfo(x.dtype).tiny)
    after = after * (1 + jax.lax.stop_gradient(jnp.clip(lost, -_FEEDBACK, _FEEDBACK)))
    return v + (is_second * (m1 / total) - is_first * (m2 / total)) * (after - u)[:, None]


def _energy(bodies, x, v):
    return (bodies.mass * (0.5 * _dot(v, v) + bodies.gravity * x[1])).sum(0)


def _dot(a, b):
    """a . b over the leading axis of two components; a reduction would keep the compiler from fusing it."""
    return a[0] * b[0] + a[1] * b[1]


def _quotient(a, b, where):
    """a / b where it holds, infinity elsewhere, with derivatives that are never NaN."""
    return jnp.where(where, a / jnp.where(where, b, 1), jnp.inf)


def _root(a, where):
    """sqrt(a) where it holds and a > 0; elsewhere 0 for a <= 0 with derivative 0."""
    positive = (a > 0) & where
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), 0)
