"""A world: a law, states to start from, what the law conserves. Worlds are made by name: artifacts hold no code."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

import kinema
from kinema.errors import BudgetExhausted, InputError, choose, unknown
from kinema.motion import Invariant, Law, Trajectory, integrate

P = ParamSpec("P")
W = TypeVar("W", bound="World")

_WORLDS: dict[str, Callable[..., "World"]] = {}


@dataclass(frozen=True)
class Origin:
    """How a world was made: `make(name, **json.loads(parameters))` makes it again."""

    name: str = "unnamed"
    parameters: str = "{}"


class Contacts(NamedTuple):
    """Hard bodies at one instant: gaps, negative where they overlap, and the motion between hits."""

    walls: Float[Array, "n axes 2"] | None  # to the low and the high wall of each axis; None without walls
    pairs: Float[Array, "n n"]  # of bodies i < j, infinite elsewhere
    acceleration: Float[Array, " axes"]


class Replay(NamedTuple):
    """A motion through some times: states with a leading time axis, and counts of hits (0 in a law without)."""

    states: PyTree
    hits: Int[Array, ""]
    pair_hits: Int[Array, ""]
    done: Bool[Array, ""]


class World(eqx.Module):
    """Interface of all worlds; one sample, `jax.vmap` at the edge.

    A world gives `origin`, `frames`, `dt`, `units`, `invariants`, `init`, and either `law`, or `replay` if it is exact
    by other means. Worlds that differ from trajectory to trajectory are a `vmap` over the module.
    """

    origin: eqx.AbstractVar[Origin]
    frames: eqx.AbstractVar[int]
    dt: eqx.AbstractVar[float]

    @property
    def name(self) -> str:
        """The name that `make` knows."""
        return self.origin.name

    @property
    def ts(self) -> np.ndarray:
        """(frames,) times of one trajectory, from 0, in float64."""
        return np.arange(self.frames) * self.dt

    @property
    def units(self) -> dict[str, str]:
        """Unit of time ("t") and of each leaf of a state."""
        raise NotImplementedError

    @property
    def invariants(self) -> dict[str, Invariant]:
        """What every motion of this world conserves."""
        return {}

    @property
    def law(self) -> Law:
        """What moves a state."""
        raise NotImplementedError(f"{self.name} has no law that can be integrated; use flow")

    @property
    def constants(self) -> dict[str, Array]:
        """Numbers without time that a trajectory keeps, by name: mass, radius."""
        return {}

    def given(self, constants: Mapping[str, Array]) -> "World":
        """This world with one trajectory's `constants`, so far as it has them."""
        return self

    def init(self, key: PRNGKeyArray) -> PyTree:
        """One state to start from."""
        raise NotImplementedError

    def flow(self, state: PyTree, ts: Any) -> PyTree:
        """States at the times `ts` after (before, if negative) that of `state`: leaves (len(ts), ...).

        `ts` increases and is concrete. Times before the state's integrate the law backwards.

        Raises:
            InputError: ts does not increase or is not concrete.
            BudgetExhausted: the motion has more events than the world allows. Inside `jit` and `vmap`: RuntimeError.
        """
        out = self.replay(state, ts)
        return finished(out.states, out.done, f"{self.name}: the motion has more hits than max_events allows")

    def replay(self, state: PyTree, ts: Any) -> Replay:
        """`flow` with counts of hits, and `done` in place of an error."""
        ts = offsets(ts)
        states = both_ways(lambda times: integrate(self.law, state, np.concatenate([[0.0], times])).states, ts)
        return Replay(states, jnp.asarray(0), jnp.asarray(0), jnp.asarray(True))

    def retract(self, state: PyTree) -> PyTree:
        """The nearest allowed state."""
        return state

    @property
    def augment(self) -> Callable[[PRNGKeyArray, PyTree], PyTree] | None:
        """`augment(key, states)`: a motion exactly as likely as the one given. None: no symmetry is known."""
        return None

    def contacts(self, state: PyTree) -> Contacts | None:
        """Gaps between hard bodies and walls; None where the law has no hits."""
        return None

    def check(self, states: PyTree) -> None:
        """Refuse states (any leading axes) that the world does not allow.

        Raises:
            InputError: names the frame or trajectory, and the body.
        """

    def render(self, state: PyTree, **options: Any) -> Array:
        """A picture of one state, (height, width, 3) in 0 .. 1."""
        raise InputError(f"{self.name} cannot be drawn as pixels")

    def simulate(self, n: int, *, key: PRNGKeyArray) -> Trajectory:
        """`n` trajectories from `init`, an ensemble.

        >>> make("collisions").simulate(8, key=jr.key(0)).states["x"].shape
        (8, 16, 2, 2)

        `constants` hold the world's own numbers, `hits` and `pair_hits`.

        Raises:
            InputError: n not positive.
            BudgetExhausted: names the trajectory.
        """
        if not n > 0:
            raise InputError(f"n must be positive, got {n}")
        world = nameless(self)
        states = _start(world, jr.split(key, n))
        self.check(states)
        out, constants = _replay(world, states)
        unfinished = np.flatnonzero(~np.asarray(out.done))
        if len(unfinished):
            raise BudgetExhausted(f"{self.name}: trajectory {unfinished[0]} has more hits than max_events allows")
        constants |= {"hits": out.hits, "pair_hits": out.pair_hits}
        meta = {"world": self.name, "parameters": json.loads(self.origin.parameters), "units": self.units}
        return Trajectory(self.ts, out.states, constants, meta | {"version": kinema.__version__}, single=False)


def world(name: str) -> Callable[[Callable[P, W]], Callable[P, W]]:
    """Register a function that makes a world. All its parameters have defaults and can be written as JSON."""

    def register(factory: Callable[P, W]) -> Callable[P, W]:
        if name in _WORLDS:
            raise InputError(f"a world named {name!r} is registered already")

        @wraps(factory)
        def named(*args: P.args, **kwargs: P.kwargs) -> W:
            bound = inspect.signature(factory).bind(*args, **kwargs)
            bound.apply_defaults()
            parameters = {key: _plain(value) for key, value in bound.arguments.items()}
            return replace(factory(*args, **kwargs), origin=Origin(name, json.dumps(parameters)))

        _WORLDS[name] = named
        return named

    return register


def make(name: str, **parameters: Any) -> World:
    """The world `name`.

    >>> make("collisions", balls=3).radius.shape
    (3,)

    Raises:
        InputError: unknown name or parameter (the nearest is suggested), or a value that the world cannot have.
    """
    factory = choose(_WORLDS, name, "world")
    known = inspect.signature(factory).parameters
    for given in parameters:
        if given not in known:
            raise InputError(unknown(f"parameter of world {name!r}", given, known))
    return factory(**parameters)


def worlds() -> tuple[str, ...]:
    """Names that `make` knows, sorted."""
    return tuple(sorted(_WORLDS))


def nameless(world: W) -> W:
    """`world` without its origin, so that compiled functions of a world serve all that differ in numbers only."""
    return replace(world, origin=Origin())


def offsets(ts: Any) -> np.ndarray:
    """Times as float64 (frames,), which must be concrete and increase."""
    if isinstance(ts, Tracer):
        raise InputError("ts must be concrete (NumPy) times, got a traced array; close over it")
    ts = np.atleast_1d(np.asarray(ts, np.float64))
    if ts.ndim != 1 or not ts.size or not np.isfinite(ts).all():
        raise InputError(f"ts must be finite times of shape (frames,), got shape {ts.shape}")
    late = np.flatnonzero(np.diff(ts) <= 0)
    if len(late):
        raise InputError(f"ts must increase, got ts[{late[0] + 1}]={ts[late[0] + 1]} after ts[{late[0]}]={ts[late[0]]}")
    return ts


def both_ways(run: Callable[[np.ndarray], PyTree], ts: np.ndarray) -> PyTree:
    """States at `ts` from runs that go one way each: `run(times)` gives the state at 0, then at times leading away."""
    before, after = ts[ts < 0][::-1], ts[ts >= 0]
    parts = []
    if len(before):
        parts.append(jax.tree.map(lambda x: x[:0:-1], run(before)))
    if len(after):
        at_start = after[0] == 0
        parts.append(jax.tree.map(lambda x: x[0 if at_start else 1 :], run(after[1:] if at_start else after)))
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts) if len(parts) > 1 else parts[0]


def finished(states: PyTree, done: Bool[Array, ""], message: str) -> PyTree:
    """`states` if `done`, else BudgetExhausted; a RuntimeError inside compiled code."""
    if isinstance(done, Tracer):
        return eqx.error_if(states, ~done, message)
    if not bool(done):
        raise BudgetExhausted(message)
    return states


@eqx.filter_jit
def _start(world: World, keys: Key[Array, " n"]) -> PyTree:
    return jax.vmap(world.init)(keys)


@eqx.filter_jit
def _replay(world: World, states: PyTree) -> tuple[Replay, dict[str, Array]]:
    out = jax.vmap(lambda state: world.replay(state, world.ts))(states)
    n = jax.tree.leaves(states)[0].shape[0]
    return out, {name: jnp.broadcast_to(value, (n, *jnp.shape(value))) for name, value in world.constants.items()}


def _plain(value: Any) -> Any:
    """What JSON can hold; None for a traced array, which differs from trajectory to trajectory."""
    if isinstance(value, Tracer):
        return None
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return np.asarray(value).tolist()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
