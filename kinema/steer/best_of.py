"""Best of n: draw n candidates for every sample asked for and keep the one of highest reward."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.steer.controller import Controller, Ledger, Particles, Scene


class BestOf(Controller):
    """Keep the best of `n` candidates by `reward(x) -> scalar` of one sample in physical units.

    A candidate whose reward is NaN is never kept unless all are.

    Raises:
        InputError: n < 1.
    """

    n: int = eqx.field(static=True)
    reward: Callable

    def __check_init__(self):
        if self.n < 1:
            raise InputError(f"n must be at least 1, got {self.n}")

    @property
    def copies(self) -> int:
        return self.n

    def price(self, particles: Particles, scene: Scene) -> tuple[Ledger, Ledger]:
        return Ledger.empty(), Ledger.empty().add(rewards=particles.size)

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        reward = jax.vmap(self.reward)(x).reshape(-1, self.n)
        best = jnp.argmax(jnp.where(jnp.isnan(reward), -jnp.inf, reward), 1) + self.n * jnp.arange(reward.shape[0])
        kept = jax.tree.map(lambda leaf: leaf[best], x)
        return kept, particles.log_weight[best], ledger.add(rewards=particles.size)
