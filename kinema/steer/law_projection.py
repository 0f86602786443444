"""Projection onto a world's law: keep one state of a generated motion and let the world move it.

Wrong motion is not repaired frame by frame: the state at the anchor frame is retracted to the nearest allowed state and
the world's exact flow fills all other frames, forwards and backwards. Obeying the law then holds by construction; what
the generator contributes is *which* motion.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.simulate.world import World
from kinema.steer.controller import Controller, Ledger, Particles, Scene


class LawProjection(Controller):
    """Project motion onto the flow of `world` through its state at one frame.

    `anchor` is "middle" or a frame. `start` is the time from which data predictions are projected while sampling; 1
    projects the finished sample only. Samples decode to the world's states with a leading axis of `world.frames`.

    Raises:
        InputError: an anchor outside the frames; `start` outside [0, 1].
    """

    world: World
    anchor: int | str = eqx.field(static=True, default="middle")
    start: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if self.anchor != "middle" and not (isinstance(self.anchor, int) and 0 <= self.anchor < self.world.frames):
            raise InputError(f"anchor must be 'middle' or a frame in 0 .. {self.world.frames - 1}, got {self.anchor!r}")
        if not 0 <= self.start <= 1:
            raise InputError(f"start must be in [0, 1], got {self.start}")

    @property
    def edits(self) -> bool:
        return self.start < 1

    def project(self, states: PyTree) -> PyTree:
        """One motion `(frames, ...)` moved onto the law."""
        frame = self.world.frames // 2 if isinstance(self.anchor, str) else self.anchor
        state = self.world.retract(jax.tree.map(lambda leaf: leaf[frame], states))
        return self.world.flow(state, (np.arange(self.world.frames) - frame) * self.world.dt)

    def edit(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        projected = self.project(data)
        return jax.tree.map(lambda new, old: jnp.where(t >= self.start, new, old), projected, data)

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        return jax.vmap(self.project)(x), particles.log_weight, ledger
