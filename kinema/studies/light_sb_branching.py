"""Branching cells whose middle is held out: a light bridge against straight lines and independent ends."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from kinema.generate.bridges import LightBridge, fit_light_bridge
from kinema.motion import integrate
from kinema.verify import energy_distance

NOISE = 0.25  # volatility of the branching motion, and the eps of its bridge


class Branching(NamedTuple):
    """Energy distances to the held-out time, and what is drawn: cells at t = 0, 0.5 and 1, paths by method."""

    distances: dict[str, float]
    cells: Float[Array, "times n 2"]
    paths: dict[str, Float[Array, "n frames 2"]]


def branching(n: int, steps: int, key) -> Branching:
    """Two kinds of cells that each split in two, seen at the start and the end by different cells."""
    keys = jr.split(key, 8)
    cells = jnp.stack([grow(n, k)[:, i] for i, k in enumerate(keys[:3])])
    another, other_ends = grow(n, keys[3])[:, 1], grow(n, keys[4])[:, 2]
    start, middle, end = cells
    bridge, _ = fit_light_bridge(start, end, eps=NOISE, components=20, steps=steps, key=keys[5])
    ts = jnp.linspace(0, 1, 21)
    bridged = paths_of(bridge, ts, start, jr.split(keys[6], n))
    straight = (start + bridged[:, -1]) / 2
    apart = pinned(ts, start, other_ends, keys[7])
    distances = {
        "bridge": bridged[:, 10],
        "straight lines": straight,
        "independent ends": apart[:, 10],
        "another draw": another,
    }
    found = {name: float(energy_distance(cloud, middle)) for name, cloud in distances.items()}
    return Branching(found, cells, {"bridge": bridged, "independent ends": apart})


class Fork(eqx.Module):
    """Forward at constant speed; from the middle on the nearer of the lines 3 and -3 repels to both its sides."""

    def drift(self, t, x, args=None):
        side = x[1] - 3 * jnp.sign(x[1])
        return jnp.array([4.0, 6 * jnp.clip(x[0] - 1, -1, 1) * side - 3 * side**3])

    def diffusion(self, t, x, args=None):
        return jnp.full_like(x, NOISE**0.5)


@eqx.filter_jit
def grow(n: int, key) -> Float[Array, "n times 2"]:
    """Cells at times 0, 0.5 and 1."""
    key_kind, key_start, key_path = jr.split(key, 3)
    kind = jnp.stack([jnp.zeros(n), 3 * jr.rademacher(key_kind, (n,), float)], 1)
    start = kind + 0.3 * jr.normal(key_start, (n, 2))
    ts = jnp.array([0.0, 0.5, 1.0])

    def one(x, key):
        return integrate(Fork(), x, ts, method="euler_maruyama", dt=1 / 128, key=key).states

    return jax.vmap(one)(start, jr.split(key_path, n))


@eqx.filter_jit
def paths_of(bridge: LightBridge, ts, start, keys) -> Float[Array, "n frames 2"]:
    return jax.vmap(lambda x, key: bridge.sample_bridge(ts, x, key=key))(start, keys)


@eqx.filter_jit
def pinned(ts, start: Float[Array, "n 2"], end: Float[Array, "n 2"], key) -> Float[Array, "n frames 2"]:
    """Brownian bridges between given ends."""
    steps = jnp.sqrt(jnp.diff(ts, prepend=0.0))[:, None]
    motion = jnp.cumsum(steps * jr.normal(key, (len(start), len(ts), 2)), 1)
    noise = motion - ts[:, None] * motion[:, -1:]
    return start[:, None] + ts[:, None] * (end - start)[:, None] + NOISE**0.5 * noise
