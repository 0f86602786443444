"""Controllers that move particles about, for the tests of moves and of runners."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from kinema.generate import VP, MixturePosterior, solver
from kinema.generate.solver import grids
from kinema.steer import Controller, Move

PATH = VP()
GEN = MixturePosterior(PATH, jnp.array([[-1.0, 0.0], [1.0, 0.5]]), jnp.array([0.05, 0.1]))
GRID = grids.log_snr(PATH, 12)
PLANS = {
    "euler": solver.euler(PATH, GRID),
    "dpmpp-3m": solver.dpmpp(PATH, GRID, order=3),
    "heun": solver.heun(PATH, GRID),
    "ancestral": solver.ancestral(PATH, GRID),
}


ROUNDS = 96


class Follow(Controller):
    """The moves of a list (kernel, to), the same for all, one after every whole step; the result is where particles
    stand, or with `finish_up` what `steer` makes of it."""

    moves: jax.Array
    finish_up: bool = False

    @property
    def kernels(self):
        return ("hold", "renoise", "invert")

    def rounds(self, scene):
        return ROUNDS

    def memory(self, n):
        return jnp.zeros(n, jnp.int32)

    def plan(self, particles, scene, key):
        kernel, to = self.moves[particles.aux[0]]
        return Move(kernel, to)

    def update(self, particles, data, scene, ledger, key):
        return eqx.tree_at(lambda p: p.aux, particles, particles.aux + 1), ledger

    def finish(self, x, particles, scene, ledger, key):
        return x if self.finish_up else particles.state.x, particles.log_weight, ledger


def follow(*moves):
    return jnp.array([*moves, *((Move.HOLD, 0),) * (ROUNDS + 1 - len(moves))], jnp.int32)


def down(count):
    return ((Move.DENOISE, 0),) * count


class Stagger(Controller):
    """Odd slots hold until even ones have finished. `see(particles)` is called before every round, from the host."""

    see: Callable = lambda particles: None

    @property
    def kernels(self):
        return ("hold",)

    def rounds(self, scene):
        return 2 * scene.rows.micro_steps

    def plan(self, particles, scene, key):
        self.see(particles)
        waits = (jnp.arange(particles.size) % 2 == 1) & ~scene.finished(particles)[0]
        return Move(jnp.where(waits, Move.HOLD, Move.DENOISE))


class Branch(Controller):
    """Once all have finished, the first half is renoised from slot 0, at two levels."""

    @property
    def kernels(self):
        return ("renoise",)

    def rounds(self, scene):
        return 2 * scene.rows.micro_steps

    def memory(self, n):
        return jnp.zeros(n, bool)

    def plan(self, particles, scene, key):
        slots = jnp.arange(particles.size)
        again = scene.finished(particles) & ~particles.aux & (slots < particles.size // 2)
        return Move(jnp.where(again, Move.RENOISE, Move.DENOISE), 4 + 2 * (slots % 2), jnp.where(again, 0, slots))

    def update(self, particles, data, scene, ledger, key):
        return eqx.tree_at(lambda p: p.aux, particles, particles.aux | (particles.age == 0)), ledger
