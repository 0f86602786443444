"""Restoration: motion seen through noise and gaps, found again by a generator, a world's law, or both.

An observation y = x1 + sigma z is a point of the path, x_t = a y, at the time where s / a = sigma. What was seen is
held there; what was hidden is drawn again from its own prediction and noise, round after round, and the predictions are
averaged: a Gibbs sampler of E[x1 | y]. That says *which* motion. Where a law is known, the states of that mean at some
frames begin Levenberg-Marquardt fits of an exact motion to y, and the closest is kept.

Reference: Lugmayr et al. 2022 (drawing again what is hidden); Levenberg 1944, Marquardt 1963.
"""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random as jr
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from kinema.errors import InputError
from kinema.generate.codec import Codec
from kinema.generate.generator import AbstractGenerator
from kinema.generate.path.path import in_float64
from kinema.generate.solver.grids import from_times
from kinema.generate.solver.plan import Plan
from kinema.generate.solver.stochastic import ancestral
from kinema.simulate.world import World
from kinema.steer.controller import Controller, Ledger, Particles, Scene
from kinema.steer.motion_fit import fit_motion
from kinema.steer.rounds import SteerResult, steer

HIDDEN = 50.0  # noise of so many standard deviations of the data says nothing


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
        if not isinstance(self.seen, Tracer) and not bool(self.seen.any(1).all()):
            raise InputError(f"motion {int(np.argmin(np.asarray(self.seen).any(1)))} is not seen in any frame")

    @property
    def weights(self) -> dict[str, Array]:
        """One over the noise of each number, 0 where it is hidden."""

        def over(name: str) -> Array:
            leaf = self.states[name]
            return jnp.broadcast_to(self.seen.reshape(*self.seen.shape, *(1,) * (leaf.ndim - 2)), leaf.shape)

        return {name: over(name) / noise for name, noise in self.noise.items()}


class Restoration(Controller):
    """Hold what was seen while a plan of `restoration_plan` draws the rest; then fit the law, if a `world` is given.

    `levels` is the noise of each stacked array in units of the data's spread, in the codec's order; `last` rounds are
    averaged. `starts` are the frames at which fits of `iterations` steps begin.

    Raises:
        InputError: a start outside the world's frames; fewer than 1 iteration or round.
    """

    observed: Observed
    levels: Float[Array, " arrays"]
    world: World | None = None
    last: int = eqx.field(static=True, default=8)
    starts: tuple[int, ...] = eqx.field(static=True, default=())
    iterations: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if self.iterations < 1 or self.last < 1:
            raise InputError(f"iterations and last must be at least 1, got {self.iterations} and {self.last}")
        if self.world is not None and any(not 0 <= frame < self.world.frames for frame in self.starts):
            raise InputError(f"starts must be frames in 0 .. {self.world.frames - 1}, got {self.starts}")

    def memory(self, n: int) -> PyTree:
        """The observation, and the mean of the last predictions."""
        states = self.observed.states
        return states, self.observed.seen, jax.tree.map(jnp.zeros_like, states)

    def arrive(self, t, x: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        states, seen, _ = aux
        a, _, s = scene.generator.path.coefficients(t)
        extra = jnp.sqrt(jnp.maximum((s / a) ** 2 - self.levels**2, 0))
        held = a * (scene.encode(states) + extra * jr.normal(key, x.shape))
        known = seen.reshape(-1, *(1,) * (x.ndim - 1)) & (self.levels < HIDDEN)
        return jnp.where(known, held, x)

    def update(self, particles: Particles, data: PyTree, scene: Scene, ledger: Ledger, key) -> tuple[Particles, Ledger]:
        states, seen, mean = particles.aux
        late = particles.row >= scene.rows.micro_steps - self.last

        def gather(mean, now):
            return mean + jnp.where(late.reshape(-1, *(1,) * (now.ndim - 1)), now / self.last, 0)

        aux = (states, seen, jax.tree.map(gather, mean, data))
        return eqx.tree_at(lambda p: p.aux, particles, aux), ledger

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        states, _, mean = particles.aux
        if self.world is not None:
            fit = partial(fit_motion, self.world, starts=self.starts, iterations=self.iterations)
            mean = jax.vmap(fit)(mean, states, self.observed.weights)
        return mean, particles.log_weight, ledger


def restore(
    gen: AbstractGenerator,
    codec: Codec,
    observed: Observed,
    *,
    key,
    world: World | None = None,
    rounds: int = 16,
    cond: PyTree | None = None,
) -> SteerResult:
    """Restore observed motion; with a `world` the result obeys its law by construction.

    Costs `rounds` network evaluations a motion.

    Example:
        >>> restore(run.generator, run.codec, Observed(states, seen, noise), key=key, world=world).x["x"].shape
        (n, frames, bodies, axes)

    Raises:
        InputError: an observation of other states than the generator's, or one that only has noise.
    """
    n = observed.seen.shape[0]
    if sorted(codec.names) != sorted(observed.states):
        raise InputError(f"the generator's states are {sorted(codec.names)}, those observed {sorted(observed.states)}")
    levels = np.array([observed.noise[name] for name in codec.names]) / np.asarray(codec.std)
    plan = restoration_plan(gen.path, float(max(levels[levels < HIDDEN], default=0.0)), rounds)
    like = jax.eval_shape(codec.encode, jax.tree.map(lambda leaf: leaf[0], observed.states))
    # arrays are traced where Python's floats would be part of the program
    observed = replace(observed, noise={name: np.float64(level) for name, level in observed.noise.items()})
    controller = Restoration(observed, jnp.asarray(levels, jnp.float32), world, last=max(1, rounds // 2))
    return steer(gen, plan, controller, n, key=key, shape=like, codec=codec, cond=cond)


def restoration_plan(path, noise: float, rounds: int, *, settle: float = 0.25) -> Plan:
    """Rounds that predict and put all noise back: down to s / a = `noise` in a first share `settle`, then at it.

    Raises:
        InputError: `noise` not positive or beyond the path's; fewer than 2 rounds.
    """
    if rounds < 2:
        raise InputError(f"rounds must be at least 2, got {rounds}")
    highest = float(in_float64(path.log_snr, path.t_max)[0])
    lowest = float(in_float64(path.log_snr, max(path.t_min, 1e-3))[0])
    if not noise > 0 or not lowest < -np.log(noise) < highest:
        raise InputError(
            f"noise must be between {np.exp(-highest):.2g} and {np.exp(-lowest):.2g} of the data, got {noise:g}"
        )
    level = -np.log(noise)
    first = max(1, round(settle * rounds))
    falling = np.linspace(min(level, -np.log(max(2 * noise, 1.0))), level, first + 1)[:-1]
    times = in_float64(path.time_of_log_snr, np.r_[falling, np.full(rounds - first, level)])[0]
    # Rounds at one level: times that rise by next to nothing, so that the grid still increases.
    times = np.maximum.accumulate(times) * (1 - 1e-6) + 1e-6 * times[-1] * np.linspace(0, 1, rounds)
    return ancestral(path, from_times(path, times, clean=True), eta=1e9)
