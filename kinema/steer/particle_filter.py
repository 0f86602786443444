"""Reward tilting by weighted particles: draw from p(x) exp(strength r(x)) without training.

Each particle's log-weight gains strength (r(m_new) - r(m_old)) at every step, m its data prediction, so that at the end
it is exactly strength r(x); resampling in between moves work to the particles that promise most.

Reference: Singhal et al. 2025; Skreta et al. 2025.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from kinema.errors import InputError, choose
from kinema.steer.controller import Controller, Ledger, Particles, Scene
from kinema.steer.resampling import ALL_RESAMPLERS, ess, logmeanexp


class ParticleFilter(Controller):
    """Tilt the law of samples by a reward, with resampling when the effective sample size falls below `threshold` n.

    `reward(x) -> scalar` sees one sample in physical units. Resampled particles share the mean log-weight, so
    `logmeanexp(log_weight)` estimates the log normaliser. `resample_last` returns unweighted samples.

    Raises:
        InputError: `threshold` outside [0, 1]; an unknown `resampler`; a deterministic plan with threshold > 0, whose
            resampled particles would stay identical.
    """

    reward: Callable
    strength: float = 1.0
    threshold: float = 0.5
    resampler: str = eqx.field(static=True, default="systematic")
    resample_last: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must be in [0, 1], got {self.threshold}")
        choose(ALL_RESAMPLERS, self.resampler, "resampler")

    def check(self, scene: Scene, stochastic: bool) -> None:
        if self.threshold > 0 and not stochastic:
            raise InputError(
                "a deterministic plan leaves resampled particles identical; use a stochastic solver or threshold=0"
            )

    def price(self, particles: Particles, scene: Scene) -> tuple[Ledger, Ledger]:
        look = Ledger.empty().add(rewards=particles.size)
        return look, look

    def begin(self, particles: Particles, scene: Scene, ledger: Ledger) -> tuple[Particles, Ledger]:
        reward = jnp.zeros(particles.size)
        return eqx.tree_at(lambda p: p.aux, particles, reward, is_leaf=lambda leaf: leaf is None), ledger

    def update(self, particles: Particles, data: PyTree, scene: Scene, ledger: Ledger, key) -> tuple[Particles, Ledger]:
        particles, ledger = self._weigh(particles, data, ledger)
        low = ess(particles.log_weight) < self.threshold * particles.size
        return jax.lax.cond(low, lambda p: self._resample(p, key), lambda p: p, particles), ledger

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        particles, ledger = self._weigh(particles, x, ledger)
        if self.resample_last:
            parents = ALL_RESAMPLERS[self.resampler](key, particles.log_weight)
            x = jax.tree.map(lambda leaf: leaf[parents], x)
            particles = self._resample(particles, key)
        return x, particles.log_weight, ledger

    def _weigh(self, particles: Particles, data: PyTree, ledger: Ledger) -> tuple[Particles, Ledger]:
        reward = self.strength * jax.vmap(self.reward)(data)
        reward = jnp.where(jnp.isnan(reward), -jnp.inf, reward)
        gain = jnp.where(
            jnp.isneginf(reward), -jnp.inf, reward - jnp.where(jnp.isneginf(particles.aux), 0, particles.aux)
        )
        particles = eqx.tree_at(lambda p: (p.log_weight, p.aux), particles, (particles.log_weight + gain, reward))
        return particles, ledger.add(rewards=particles.size)

    def _resample(self, particles: Particles, key) -> Particles:
        chosen = particles.select(ALL_RESAMPLERS[self.resampler](key, particles.log_weight))
        level: Array = jnp.full(particles.size, logmeanexp(particles.log_weight))
        return eqx.tree_at(lambda p: p.log_weight, chosen, level)
