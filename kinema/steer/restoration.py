"""Restoration: the motion that a world's law allows, found behind noise and gaps with a generator as prior.

While sampling, every data prediction m is corrected by the observation y where it was seen, as if motion given x_t were
normal with the variance r^2 = std^2 s^2 / (a^2 + s^2) of a prior of unit size:

    m <- m + r^2 / (r^2 + noise^2) (y - m)

The finished sample says *which* motion; then a state is fitted so that its exact flow passes closest to what was seen.

Reference: Chung et al. 2023 and Song et al. 2023 for guidance by observations; Levenberg 1944, Marquardt 1963.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree

from kinema.errors import InputError
from kinema.generate.fields import Moments
from kinema.simulate.world import World
from kinema.steer.controller import Controller, Ledger, Particles, Scene


class Observed(eqx.Module):
    """Noisy, partly hidden motion: `states` (n, frames, ...) in physical units, `seen` (n, frames), and the standard
    deviation of the noise of every named array. Hidden frames may hold any finite number.

    Raises:
        InputError: noise not positive or for another array; `seen` of another shape; a motion that is never seen.
    """

    states: dict[str, Array]
    seen: Bool[Array, "n frames"]
    noise: dict[str, float]

    def __check_init__(self):
        if sorted(self.noise) != sorted(self.states):
            raise InputError(f"noise must name {sorted(self.states)}, got {sorted(self.noise)}")
        for name, level in self.noise.items():
            if not level > 0:
                raise InputError(f"noise of {name} must be positive, got {level}")
            if self.states[name].shape[:2] != self.seen.shape:
                raise InputError(f"seen must have shape {self.states[name].shape[:2]}, got {self.seen.shape}")
        if not isinstance(self.seen, jax.core.Tracer) and not bool(self.seen.any(1).all()):
            raise InputError(f"motion {int(np.argmin(np.asarray(self.seen).any(1)))} is not seen in any frame")


class Restoration(Controller):
    """Restore observed motion: sample the prior given the observation, then fit the law.

    Of the motion drawn, the states at `starts` frames begin fits of `iterations` Levenberg-Marquardt steps to the
    observation; the one that passes closest is kept. `world=None` leaves out the law and returns the draw.

    Raises:
        InputError: a start outside the world's frames; fewer than 1 iteration.
    """

    observed: Observed
    world: World | None = None
    starts: tuple[int, ...] = eqx.field(static=True, default=())
    iterations: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if self.iterations < 1:
            raise InputError(f"iterations must be at least 1, got {self.iterations}")
        if self.world is not None and any(not 0 <= frame < self.world.frames for frame in self.starts):
            raise InputError(f"starts must be frames in 0 .. {self.world.frames - 1}, got {self.starts}")

    def begin(self, particles: Particles, scene: Scene, ledger: Ledger) -> tuple[Particles, Ledger]:
        aux = (self.observed.states, self.observed.seen)
        return eqx.tree_at(lambda p: p.aux, particles, aux, is_leaf=lambda leaf: leaf is None), ledger

    def edit(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        values, seen = aux
        moments = Moments.at(scene.generator.path, t)
        share = moments.s**2 / (moments.a**2 + moments.s**2)
        spread = scene.codec.decode(jnp.sqrt(share) + 0 * scene.encode(data))
        centre = scene.codec.decode(0 * scene.encode(data))

        def correct(name: str) -> Array:
            variance = (spread[name] - centre[name]) ** 2
            gain = variance / (variance + self.observed.noise[name] ** 2) * _over(seen, data[name])
            return data[name] + gain * (values[name] - data[name])

        return {name: correct(name) for name in data}

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        if self.world is not None:
            x = jax.vmap(lambda guess, aux: fit_motion(self, guess, *aux))(x, particles.aux)
        return x, particles.log_weight, ledger


def fit_motion(task: Restoration, guess: PyTree, values: PyTree, seen: Bool[Array, " frames"]) -> PyTree:
    """The motion of `task.world` closest to the observation, among fits that start at frames of `guess`."""
    world, noise = task.world, task.observed.noise

    def gap(motion: PyTree) -> Array:
        parts = [_over(seen, motion[k]) * (motion[k] - values[k]) / noise[k] for k in sorted(motion)]
        return jnp.concatenate([part.ravel() for part in parts])

    def fit(frame: int) -> tuple[PyTree, Array]:
        flat, restore = ravel_pytree(jax.tree.map(lambda leaf: leaf[frame], guess))
        offsets = (np.arange(world.frames) - frame) * world.dt

        def motion(vector: Array) -> PyTree:
            return world.flow(world.retract(restore(vector)), offsets)

        solver = optx.LevenbergMarquardt(rtol=1e-4, atol=1e-4)
        found = optx.least_squares(
            lambda vector, _: gap(motion(vector)), solver, flat, max_steps=task.iterations, throw=False
        )
        fitted = motion(found.value)
        return fitted, jnp.sum(gap(fitted) ** 2)

    frames = task.starts or tuple(sorted({0, *np.linspace(0, world.frames - 1, 5).astype(int).tolist()}))
    motions, misfits = zip(*(fit(frame) for frame in frames))
    best = jnp.argmin(jnp.stack(misfits))
    return jax.tree.map(lambda *options: jnp.stack(options)[best], *motions)


def _over(seen: Bool[Array, " frames"], like: Array) -> Array:
    """1 where seen, along the first axis of `like`."""
    return seen.reshape(-1, *(1,) * (like.ndim - 1)).astype(like.dtype)
