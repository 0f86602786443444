"""A mass on a spring: x'' = -stiffness x, state {"x": (1,), "v": (1,)}."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from kinema.motion import Invariant, SecondOrder
from kinema.simulate import Origin, World


class Spring(World):
    """Unit mass, started at random."""

    stiffness: Float[Array, ""]  # N/m
    frames: int = eqx.field(static=True, default=32)
    dt: float = eqx.field(static=True, default=0.1)
    origin: Origin = eqx.field(static=True, default=Origin("spring"))

    @property
    def units(self):
        return {"t": "s", "x": "m", "v": "m/s"}

    @property
    def law(self):
        return SecondOrder(lambda t, x, args: -self.stiffness * x)

    @property
    def invariants(self):
        def energy(state):
            return 0.5 * jnp.sum(state["v"] ** 2 + self.stiffness * state["x"] ** 2)

        return {"energy": Invariant(energy, "J", 1e-5)}

    def init(self, key):
        x, v = jr.normal(key, (2, 1))
        return {"x": x, "v": v}


def spring(stiffness: float = 1.0, frames: int = 32, dt: float = 0.1) -> Spring:
    """A mass on a spring; `stiffness` in N/m."""
    return Spring(jnp.asarray(stiffness, float), frames, dt)
