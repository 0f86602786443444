"""Brownian paths made from a key alone: asked at any times, in any order, always the same path.

W(t) is found by bisection, a random number from the key for every midpoint; between a and b a midpoint has the mean of
both ends and variance (t - a)(b - t) / (b - a). Nothing is stored.   [Kidger, Foster, Li & Lyons 2021]
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.motion.stepping import EvenSteps

_FINEST = 2.0**-16  # of the time span


class BrownianPath(eqx.Module):
    """One path W on [start, end] with W(start) = 0, one independent motion for each number of `like`.

    >>> path = BrownianPath(0.0, 1.0, jnp.zeros(2), key=jax.random.key(0))
    >>> path(jnp.linspace(0, 1, 5)).shape, path.increments(jnp.array([0.25, 0.5])).shape
    ((5, 2), (1, 2))

    `resolution` is the shortest time that is told apart; between, the path is smooth. Default (end - start) / 65 536.

    Raises:
        InputError: end not after start; resolution not positive; times outside [start, end].
    """

    tree: diffrax.VirtualBrownianTree

    def __init__(self, start: Any, end: Any, like: PyTree, *, key: PRNGKeyArray, resolution: Any = None):
        if not _known(start, end) or float(start) < float(end):
            resolution = (end - start) * _FINEST if resolution is None else resolution
        else:
            raise InputError(f"end must be after start, got start={start}, end={end}")
        if _known(resolution) and not float(resolution) > 0:
            raise InputError(f"resolution must be positive, got {resolution}")
        shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, like))
        self.tree = diffrax.VirtualBrownianTree(start, end, resolution, shapes, key)

    @classmethod
    def of_solve(cls, x0: PyTree, ts: Any, dt: Any, *, key: PRNGKeyArray) -> "BrownianPath":
        """The path that `integrate(law, x0, ts, dt=dt, key=key)` is driven by, for a law with one motion a number.

        For methods that need increments only, such as "euler_maruyama", "heun" and "reversible_heun".
        """
        ts = jnp.asarray(ts, jnp.result_type(float))
        return cls(ts[0], ts[-1], x0, key=key, resolution=EvenSteps(ts, jnp.asarray(dt, ts.dtype)).shortest())

    def __call__(self, t: Any) -> PyTree:
        """W at one time, or with a leading axis at many."""
        if _known(t, self.tree.t0, self.tree.t1):
            given, ends = np.asarray(t), (float(self.tree.t0), float(self.tree.t1))
            if not np.all((ends[0] <= given) & (given <= ends[1])):
                raise InputError(f"t must be within [{ends[0]}, {ends[1]}], got {t}")
        t = jnp.asarray(t, jnp.result_type(float))

        def one(t):
            return self.tree.evaluate(self.tree.t0, t)

        return jax.vmap(one)(t) if t.ndim else one(t)

    def increments(self, ts: Float[Array, " times"]) -> PyTree:
        """W(ts[i + 1]) - W(ts[i]), (times - 1, ...)."""
        return jax.tree.map(lambda w: jnp.diff(w, axis=0), self(ts))


def _known(*values) -> bool:
    return not any(isinstance(value, Tracer) for value in values)
