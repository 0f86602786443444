"""Law errors: how far a motion departs from the law of its world, in numbers that are 0 for the true world.

Worlds without hits have `replay`, and `energy` and `momentum` if they conserve them; worlds of hard bodies have all
columns. A still body obeys every law, so `speed`, `hits` and `pairs` stand beside the errors: compare them with truth.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import BudgetExhausted, InputError
from kinema.motion import Trajectory, along
from kinema.simulate.world import World, nameless

Column = Float[Array, "*trajectories"]

_EVEN = 1e-3  # time steps may differ by this share


class LawErrors(eqx.Module):
    """One number a trajectory; a column that the world does not have is None.

    V is the rms speed of the trajectory, dt the time between frames, M the total mass. An interval is free if nothing
    in it can hit at any speed that the largest energy of the trajectory allows.

    - `replay`: the world run for dt from frame k against frame k + 1, mean of sqrt(|dx|^2 / (dt V)^2 + |dv|^2 / V^2).
      States without velocities: root of the summed squares, over those of the states.
    - `energy`: rms of E_k / mean(E) - 1.
    - `momentum`: |P_{k+1} - P_k - M g dt| / (M V), mean over the axes and intervals that are free of walls.
    - `kinematic`: |x_{k+1} - x_k - dt (v_k + v_{k+1}) / 2| / (dt V), mean over the bodies and intervals that are free.
    - `wall`, `ball`: largest overlap, over the smallest radius (twice it).
    - `speed`: mean |v|. `hits`: in all replays. `pairs`: 1 if any of them was of two bodies.

    `momentum` and `kinematic` are NaN where no interval is free; means and spreads leave those trajectories out.
    """

    replay: Column
    energy: Column | None
    momentum: Column | None
    kinematic: Column | None
    wall: Column | None
    ball: Column | None
    speed: Column | None
    hits: Column
    pairs: Column

    @property
    def columns(self) -> dict[str, Array]:
        """The columns that the world has, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def means(self) -> dict[str, float]:
        """Mean of each column over the trajectories."""
        return {name: float(jnp.nanmean(value)) for name, value in self.columns.items()}

    def spreads(self) -> dict[str, float]:
        """Standard deviation of each column over the trajectories."""
        return {name: float(jnp.nanstd(value)) for name, value in self.columns.items()}


def laws(traj: Trajectory, world: World) -> LawErrors:
    """Judge every trajectory by `world`, with the trajectory's own constants (radius, mass) where it has them.

    >>> world = simulate.collisions()
    >>> round(laws(world.simulate(8, key=jr.key(0)), world).means()["replay"], 5)
    0.0

    Raises:
        InputError: fewer than two frames, times uneven or different for each trajectory, states without velocities
            in a world of hard bodies.
        NotFinite: a number of the trajectory is not finite.
        BudgetExhausted: a replay has more hits than the world allows; names trajectory and frame.
    """
    traj.check()
    dt = _step(traj)
    states, constants = traj.states, {name: x for name, x in traj.constants.items() if name in world.constants}
    if traj.ensemble is None:
        states, constants = jax.tree.map(lambda x: x[None], (states, constants))
    errors, done = _judge(nameless(world), states, constants, dt)
    late = np.argwhere(~np.asarray(done))
    if len(late):
        where = f"trajectory {late[0][0]}, frame {late[0][1]}"
        raise BudgetExhausted(f"the replay from {where} has more hits than the world's max_events allows")
    return errors


def replay_error(world: World, states: PyTree, dt: float) -> Float[Array, ""]:
    """The `replay` column of one trajectory (frames, ...), differentiable, inside compiled code too."""
    return _replay(world, states, dt)[0].mean()


@eqx.filter_jit
def _judge(world, states, constants, dt):
    return jax.vmap(lambda states, constants: _errors(world.given(constants), states, dt))(states, constants)


def _errors(world, states, dt):
    replay, out = _replay(world, states, dt)
    moves = isinstance(states, dict) and "v" in states
    contacts = jax.vmap(world.contacts)(states)
    if contacts is not None and not (moves and "x" in states):
        raise InputError('states of a world of hard bodies need positions "x" and velocities "v" to be judged')
    found = dict.fromkeys(("energy", "momentum", "kinematic", "wall", "ball", "speed"))
    found |= {
        name: along(world.invariants[name], states) for name in ("energy", "momentum") if name in world.invariants
    }
    if found["energy"] is not None:
        found["energy"] = _rms(found["energy"] / _nonzero(found["energy"].mean()) - 1)
    if found["momentum"] is not None:
        change = jnp.diff(found["momentum"].reshape(len(out.hits) + 1, -1), axis=0)
        scale = _mass(world, states["v"]).sum() * _typical_speed(world, states["v"]) if moves else 1
        found["momentum"] = jnp.abs(change / scale).mean()
    if moves:
        found["speed"] = jnp.linalg.norm(_bodies(world, states["v"]), axis=-1).mean()
    if contacts is not None:
        found |= _contact_errors(world, states["x"], states["v"], contacts, dt)
    hits, pairs = out.hits.sum().astype(float), (out.pair_hits.sum() > 0).astype(float)
    return LawErrors(replay.mean(), **found, hits=hits, pairs=pairs), out.done


def _replay(world, states, dt):
    """Error of each step, and what the replays did."""
    before, after = jax.tree.map(lambda x: x[:-1], states), jax.tree.map(lambda x: x[1:], states)
    out = jax.vmap(lambda state: world.replay(state, np.array([dt])))(before)
    gap = jax.tree.map(lambda x, y: x[:, 0] - y, out.states, after)
    if isinstance(states, dict) and set(states) == {"x", "v"}:
        speed = _typical_speed(world, states["v"])
        dx, dv = (_bodies(world, gap[name]) / scale for name, scale in (("x", dt * speed), ("v", speed)))
        return _root((dx**2).sum(-1) + (dv**2).sum(-1)), out
    gaps, values = jax.tree.leaves(gap), jax.tree.leaves(states)
    parts = [(g**2).reshape(len(g), -1).mean(-1) / _nonzero((x**2).mean()) for g, x in zip(gaps, values)]
    return _root(jnp.stack(parts).sum(0)), out


def _contact_errors(world, x, v, contacts, dt):
    mass, radius = world.constants["mass"], world.constants["radius"]
    speed, moved, gained = _typical_speed(world, v), jnp.diff(x, axis=0), jnp.diff(v, axis=0)
    reach = _largest_kinetic(mass, v, contacts)
    pair_mass = mass[:, None] * mass / (mass[:, None] + mass)
    pairs_free = contacts.pairs[:-1] + contacts.pairs[1:] > dt * jnp.sqrt(2 * reach / pair_mass)
    apart = (pairs_free & pairs_free.mT).all(-1)
    walls_free = jnp.ones(moved.shape, bool)
    wall = jnp.zeros_like(speed)
    if contacts.walls is not None:
        fastest = jnp.sqrt(2 * reach / mass)[:, None, None]
        walls_free = (contacts.walls[:-1] + contacts.walls[1:] > dt * fastest).all(-1)
        wall = jnp.maximum(-contacts.walls.min(), 0) / radius.min()
    change = (mass[:, None] * (gained - contacts.acceleration[0] * dt)).sum(1)
    drift = jnp.linalg.norm(moved - dt * (v[1:] + v[:-1]) / 2, axis=-1)
    return {
        "momentum": _mean(jnp.abs(change) / (mass.sum() * speed), walls_free.all(1)),
        "kinematic": _mean(drift / (dt * speed), walls_free.all(-1) & apart),
        "wall": wall,
        "ball": jnp.maximum(-contacts.pairs.min(), 0) / (2 * radius.min()),
    }


def _largest_kinetic(mass, v, contacts):
    """The kinetic energy that a trajectory may have between its frames: at one of them, and after falling to a wall."""
    kinetic = (mass[:, None] * v**2).sum((1, 2)) / 2
    if contacts.walls is not None:
        down = contacts.acceleration[0]
        below = jnp.where(down < 0, contacts.walls[..., 0], contacts.walls[..., 1])
        kinetic = kinetic + (mass[:, None] * jnp.abs(down) * below).sum((1, 2))
    return kinetic.max()


def _step(traj):
    if traj.ts.ndim != 1 or len(traj) < 2:
        raise InputError(f"ts must be two or more times that all trajectories share, got shape {traj.ts.shape}")
    steps = np.diff(np.asarray(traj.ts, np.float64))
    if not (steps > 0).all() or np.ptp(steps) > _EVEN * steps.mean():
        raise InputError(f"ts must increase in even steps, got steps from {steps.min()} to {steps.max()}")
    return float(steps.mean())


def _bodies(world, x):
    """(frames, ...) as (frames, bodies, components): by the world's masses, else by the first axis if there are two."""
    mass = world.constants.get("mass")
    n = len(mass) if mass is not None else (x.shape[1] if x.ndim > 2 else 1)
    return x.reshape(len(x), n, -1)


def _mass(world, v):
    mass = world.constants.get("mass")
    return jnp.ones(_bodies(world, v).shape[1]) if mass is None else mass


def _typical_speed(world, v):
    mass = _mass(world, v)
    return _nonzero(jnp.sqrt((mass[:, None] * _bodies(world, v) ** 2).sum((1, 2)).mean() / mass.sum()))


def _rms(x):
    return jnp.sqrt((x**2).mean())


def _mean(x, where):
    return jnp.where(where, x, 0).sum() / where.sum()


def _nonzero(x):
    return jnp.where(jnp.abs(x) > 1e-12, x, 1e-12)


def _root(square):
    """sqrt with derivative 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
