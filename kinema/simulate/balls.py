"""Hard balls in a box: elastic hits, optional gravity, exact."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import BudgetExhausted, InputError
from kinema.motion import Invariant
from kinema.simulate import ball_events, render
from kinema.simulate.ball_starts import Gas, pair_gaps
from kinema.simulate.symmetry import gas_symmetry
from kinema.simulate.world import Contacts, Origin, Replay, World, both_ways, finished, offsets

State = dict[str, Float[Array, "n 2"]]
States = dict[str, Float[Array, "*frames n 2"]]

# A hit at a frame leaves balls in contact: states that are repaired keep this share of a radius away from one.
_CLEAR = 2e-3
_EVEN = 1e-6  # of a span: more than rounding of times
_OVERLAP = 1e-4  # of the smallest radius: more than rounding leaves
_log = jax.jit(ball_events.log, static_argnums=0)
_run = jax.jit(ball_events.run, static_argnums=0)
_SIDES = (("left", "right"), ("floor", "ceiling"))


class Event(NamedTuple):
    """A hit at `time`: `kind` is "pair" (balls i < j), or the wall that ball i met ("left" .. "ceiling", j = -1)."""

    time: float
    kind: str
    i: int
    j: int


class Balls(World):
    """n hard discs in a box, gravity along -y; state {"x": (n, 2), "v": (n, 2)}.

    Hits are elastic and instantaneous. Several at one instant: walls first, then pairs in index order. Where three
    balls touch at one instant mechanics has no unique answer; index order is ours (and right for Newton's cradle).

    `start(world, key)` draws states. `max_events` bounds the hits of one trajectory, and sets the cost of derivatives.

    Raises:
        InputError: radius, mass, size or dt not positive, shapes that do not agree, gravity negative, a ball wider than
            the box.
    """

    radius: Float[Array, " n"]
    mass: Float[Array, " n"]
    size: Float[Array, "2"]
    gravity: Float[Array, ""]
    start: Callable[["Balls", PRNGKeyArray], State]
    frames: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    max_events: int = eqx.field(static=True)
    walls: bool = eqx.field(default=True, static=True)
    falls: bool = eqx.field(default=False, static=True)  # whether gravity may be other than 0
    origin: Origin = eqx.field(default=Origin("balls"), static=True)

    def __check_init__(self):
        if (
            self.radius.ndim != 1
            or self.mass.shape != self.radius.shape
            or self.size.shape != (2,)
            or self.gravity.ndim
        ):
            shapes = f"{self.radius.shape}, {self.mass.shape}, {self.size.shape}, {self.gravity.shape}"
            raise InputError(f"radius, mass, size, gravity must have shapes (n,), (n,), (2,), (), got {shapes}")
        for name in ("radius", "mass", "size", "dt", "frames"):
            value = getattr(self, name)
            if known(value) and not np.all(np.asarray(value) > 0):
                raise InputError(f"{name} must be positive, got {np.asarray(value).tolist()}")
        if known(self.gravity) and not self.gravity >= 0:
            raise InputError(f"gravity must not be negative, got {float(self.gravity)}")
        if self.walls and known(self.radius, self.size) and not 2 * self.radius.max() < self.size.min():
            raise InputError(f"radius must be less than half the box {self.size.tolist()}, got {self.radius.tolist()}")
        if not self.max_events >= 0:
            raise InputError(f"max_events must not be negative, got {self.max_events}")

    @property
    def units(self) -> dict[str, str]:
        return {"t": "time", "x": "length", "v": "length/time"}

    @property
    def constants(self) -> dict[str, Array]:
        return {"radius": self.radius, "mass": self.mass}

    @property
    def invariants(self) -> dict[str, Invariant]:
        """Energy; without walls also momentum, and its component across gravity."""
        found = {"energy": Invariant(self.energy, "mass length^2/time^2", 1e-5)}
        if not self.walls:
            axes = slice(0, 1 if self.falls else 2)
            found["momentum"] = Invariant(lambda state: self.momentum(state)[axes], "mass length/time", 1e-5)
        return found

    @property
    def known_energy(self) -> Float[Array, ""] | None:
        """The energy that every trajectory has, None where it varies."""
        fixed = isinstance(self.start, Gas) and self.start.energy == "fixed" and not self.falls
        return self.mass.sum() / 2 if fixed else None

    def energy(self, state: State) -> Float[Array, ""]:
        """Kinetic and potential, from the height 0."""
        speed2 = (state["v"] ** 2).sum(-1)
        return (self.mass * (speed2 / 2 + self.gravity * state["x"][:, 1])).sum()

    def momentum(self, state: State) -> Float[Array, "2"]:
        return (self.mass[:, None] * state["v"]).sum(0)

    def given(self, constants: Mapping[str, Array]) -> "Balls":
        parts = {name: constants[name] for name in ("radius", "mass") if name in constants}
        return eqx.tree_at(lambda w: [getattr(w, name) for name in parts], self, list(parts.values()))

    def init(self, key: PRNGKeyArray) -> State:
        return self.start(self, key)

    def flow(self, state: State, ts: Any) -> States:
        """Exact states at the times `ts` after (before, if negative) that of `state`: leaves (len(ts), n, 2).

        Differentiable between changes of the order of hits.

        Raises:
            InputError: ts does not increase, balls that overlap, are outside, or rest on the floor.
            BudgetExhausted: more than `max_events` hits. Inside `jit` and `vmap`: RuntimeError.
        """
        self.check(state)
        out = self.replay(state, ts)
        return finished(out.states, out.done, _budget_message(self.max_events))

    def replay(self, state: State, ts: Any) -> Replay:
        """`flow` of any state, with counts of hits: balls that overlap and approach hit at once."""
        runs = []

        def run(times):
            sign = -1 if times.size and times[0] < 0 else 1
            gaps = jnp.asarray(np.abs(np.diff(times, prepend=[0.0, 0.0])), x.dtype)
            runs.append(_run(self._rules(times), self._bodies(x.dtype), gaps, x, sign * v))
            return {"x": runs[-1].x[0], "v": sign * runs[-1].v[0]}

        x, v = self._components(state)
        states = both_ways(run, offsets(ts))
        both = jax.tree.map(lambda *parts: jnp.stack(parts), *[run[2:] for run in runs])
        wall_hits, pair_hits, done = (part[:, 0] for part in both)
        return Replay(states, wall_hits.sum() + pair_hits.sum(), pair_hits.sum(), done.all())

    def events(self, state: State, t1: float) -> list[Event]:
        """Every hit of one world within the time `t1` after `state`, in order.

        Raises:
            InputError: t1 not positive, a state that the world does not allow.
            BudgetExhausted: more than `max_events` hits.
        """
        if not t1 > 0:
            raise InputError(f"t1 must be positive, got {t1}")
        self.check(state)
        x, v = self._components(state)
        done, steps = _log(self._rules(np.array([t1])), self._bodies(x.dtype), jnp.asarray(t1, x.dtype), x, v)
        if not bool(done[0]):
            raise BudgetExhausted(_budget_message(self.max_events))
        dt, walls, pair, first, second = (np.asarray(a)[..., 0] for a in steps)
        times = np.cumsum(dt, dtype=np.float64)
        found = []
        for k in np.flatnonzero(pair | walls.any((1, 2))):
            if pair[k]:
                found.append(Event(float(times[k]), "pair", int(first[k]), int(second[k])))
            for axis, i in np.argwhere(walls[k]):
                found.append(Event(float(times[k]), _SIDES[axis][int(walls[k, axis, i] > 0)], int(i), -1))
        return found

    def retract(self, state: State) -> State:
        """The nearest allowed state, differentiable.

        Centres are moved into the box, overlapping balls pushed apart along their line, each as far as it has room, and
        velocities scaled to the energy where that is known. Dense packings of many balls may keep some overlap.
        """
        x, v, energy = _separate(self, state["x"]), state["v"], self.known_energy
        if energy is None:
            return {"x": x, "v": v}
        kinetic = (self.mass[:, None] * v**2).sum() / 2
        return {"x": x, "v": v * jnp.where(kinetic > 0, jnp.sqrt(energy / jnp.where(kinetic > 0, kinetic, 1)), 1)}

    @property
    def augment(self) -> Callable[[PRNGKeyArray, States], States] | None:
        """Reflections, exchange of axes and of like balls, time reversal; None unless the gas is stationary."""
        if self.known_energy is None or not self.walls:
            return None
        square = bool(self.size[0] == self.size[1])
        alike = bool((self.radius == self.radius[0]).all() & (self.mass == self.mass[0]).all())
        return partial(gas_symmetry, size=self.size, square=square, alike=alike)

    def contacts(self, state: State) -> Contacts:
        x = state["x"]
        low, high = x - self.radius[:, None], self.size - self.radius[:, None] - x
        acceleration = jnp.stack([jnp.zeros_like(self.gravity), -self.gravity])
        return Contacts(jnp.stack([low, high], -1) if self.walls else None, pair_gaps(x, self.radius), acceleration)

    def check(self, states: States) -> None:
        """Refuse states (any leading axes) with balls that overlap, are outside, rest on the floor, or are not finite.

        Looks at values, so inside compiled code nothing is refused.

        Raises:
            InputError: names the frame or trajectory, and the balls.
        """
        self._check_shape(states)
        if not known(states, self.radius, self.size):
            return
        x, v, radius, size = (np.asarray(a, np.float64) for a in (states["x"], states["v"], self.radius, self.size))
        _refuse(np.any(~np.isfinite(x + v), -1), "ball {} has a number that is not finite")
        slack = _OVERLAP * radius.min()
        gaps = np.minimum(x - radius[:, None], size - radius[:, None] - x)
        _refuse(np.any(gaps < -slack, -1) & self.walls, "ball {} is outside the box")
        resting = (x[..., 1] - radius <= slack) & (np.abs(v[..., 1]) <= _OVERLAP**2)
        _refuse(resting & (self.walls and self.falls), "ball {} rests on the floor, where hits never end,")
        distance = np.linalg.norm(x[..., None, :, :] - x[..., :, None, :], axis=-1)
        overlap = np.triu(distance - radius[:, None] - radius < -slack, 1)
        _refuse(overlap, "balls {} and {} overlap")

    def render(self, state: State, **options: Any) -> Float[Array, "height width 3"]:
        """A picture of one state; see `kinema.simulate.render.draw` for the options."""
        return render.draw(state["x"], self.radius, size=self.size, **options)

    def _components(self, state):
        """x, v as (2, n, 1): the engine's axes for one world."""
        self._check_shape(state)
        x, v = jnp.asarray(state["x"]), jnp.asarray(state["v"])
        dtype = jnp.result_type(x, v, float if jnp.issubdtype(x.dtype, jnp.integer) else x.dtype)
        return x.astype(dtype).T[..., None], v.astype(dtype).T[..., None]

    def _check_shape(self, states):
        if not (isinstance(states, Mapping) and {"x", "v"} <= set(states)):
            raise InputError('a state must be a dictionary with positions "x" and velocities "v"')
        x, v = jnp.shape(states["x"]), jnp.shape(states["v"])
        if x[-2:] != (*self.radius.shape, 2) or v != x:
            raise InputError(f"x and v must have shape ({len(self.radius)}, 2), got {x} and {v}")

    def _bodies(self, dtype):
        columns = (self.radius[:, None], self.mass[:, None], self.size[:, None], self.gravity[None])
        return ball_events.Bodies(*(a.astype(dtype) for a in columns))

    def _rules(self, times):
        span, horizon = float(np.abs(times).max(initial=0)), max(self.frames - 1, 1) * self.dt
        return ball_events.Rules(self.walls, self.falls, self.max_events * max(1, math.ceil(span / horizon - _EVEN)))


def known(*trees: Any) -> bool:
    """Whether all leaves have values, none being traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def _separate(world, x):
    """Positions (n, 2) with every ball inside and no two closer than contact, and a little apart."""
    radius, clear, n = world.radius, _CLEAR * world.radius.min(), len(world.radius)
    margin = jnp.broadcast_to((radius + clear)[:, None], x.shape)
    low, high = (margin, world.size - margin) if world.walls else (margin - jnp.inf, margin + jnp.inf)
    apart = radius[:, None] + radius + clear
    index = jnp.arange(n)
    coincident = jnp.stack([jnp.sign(index - index[:, None]), jnp.zeros((n, n))], -1)

    def push(_, x):
        d = x[None] - x[:, None]
        square = (d * d).sum(-1)
        distance = jnp.sqrt(jnp.where(square > 0, square, 1))
        line = jnp.where((square > 0)[..., None], d / distance[..., None], coincident)
        missing = jnp.maximum(apart - jnp.where(square > 0, distance, 0), 0) * (1 - jnp.eye(n))
        # away from the other ball as far as the walls let it; what one ball cannot move the other does
        away = jnp.clip(x[:, None] - line * missing[..., None], low[:, None], high[:, None]) - x[:, None]
        possible = -(away * line).sum(-1)
        share = jnp.minimum(possible, missing - jnp.minimum(missing / 2, possible).T)
        return jnp.clip(x + (away * (share / jnp.where(possible > 0, possible, 1))[..., None]).sum(1), low, high)

    x = jnp.clip(x, low, high)
    return jax.lax.fori_loop(0, 8 if n == 2 else 64, push, x) if n > 1 else x


def _refuse(bad: np.ndarray, what: str) -> None:
    """Name the first of `bad` (states, balls that `what` has places for)."""
    for found in np.argwhere(bad)[:1]:
        *lead, _ = found if what.count("{}") == 1 else found[:-1]
        where = f" in state {', '.join(map(str, lead))}" if lead else ""
        raise InputError(f"{what.format(*found[len(lead) :])}{where}")


def _budget_message(max_events):
    return f"the balls hit more than max_events={max_events} times; give a larger max_events"
