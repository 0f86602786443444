"""When Adan forgets its moments and begins anew.   [Xie, Zhou, Li, Lin & Yan 2024]"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from kinema.learn.optim.checks import demand, with_params


@runtime_checkable
class Restart(Protocol):
    """Asked before every step; pure, so that it may be compiled."""

    def begin(self, params: PyTree) -> PyTree:
        """What is remembered before the first step."""
        ...

    def due(
        self, memory: PyTree, count: Int[Array, ""], scales: PyTree, params: PyTree
    ) -> tuple[Bool[Array, ""], PyTree]:
        """Whether to restart, and what is remembered.

        `count` is the number of steps since the last restart, `scales` what the last one was divided by, by leaf.
        """
        ...


@dataclass(frozen=True)
class RestartEvery:
    """Restart after every `k` steps.

    >>> from kinema.learn.optim import RestartEvery, adan
    >>> rule = adan(1e-2, restart=RestartEvery(100))

    Raises:
        InputError: k below 1.
    """

    k: int

    def __post_init__(self):
        demand("k", self.k, lambda k: k >= 1, ">= 1")

    def begin(self, params):
        return ()

    def due(self, memory, count, scales, params):
        return count >= self.k, memory


class Walk(NamedTuple):
    """The parameters before the last step, and the squared length of the way since the last restart."""

    last: PyTree
    path: Float[Array, ""]


@dataclass(frozen=True)
class RestartWhenMoved:
    """Restart when k Σ |x_{i+1} - x_i|² > radius² over the k steps since the last, each weighed by sqrt(n̂) + eps.

    It remembers the last parameters: one more number for each.

    >>> from kinema.learn.optim import RestartWhenMoved, adan
    >>> rule = adan(1e-2, restart=RestartWhenMoved(10.0))

    Raises:
        InputError: radius not positive; at `update`, no params.
    """

    radius: float

    def __post_init__(self):
        demand("radius", self.radius, lambda r: r > 0, "positive")

    def begin(self, params):
        return Walk(jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))

    def due(self, memory, count, scales, params):
        params = with_params("RestartWhenMoved", params)
        squares = jax.tree.map(lambda s, x, y: jnp.sum(s * (x - y) ** 2), scales, params, memory.last)
        step = sum(jax.tree.leaves(squares), start=jnp.zeros(()))
        path = memory.path + jnp.where(count == 0, 0, step).astype(memory.path.dtype)
        again = count * path > self.radius**2
        return again, Walk(params, jnp.where(again, 0, path))
