"""Equilibrium layers: the output is the state that a step no longer moves, z* = f(z*, x).

The depth is infinite and the gradient needs none of it: (I - df/dz)^-T at z*, by the implicit function theorem.

[Bai, Kolter & Koltun 2019 (deep equilibrium models); Bai, Koltun & Kolter 2021 (Jacobian penalty)]
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from kinema.errors import InputError, choose
from kinema.models.checks import check_positive
from kinema.motion import trees

SEARCHES: dict[str, Callable[..., Any]] = {
    "newton": optx.Newton,
    "chord": optx.Chord,
    "fixed_point": optx.FixedPointIteration,
}
"""How an equilibrium is found: few steps with a Jacobian each, with the first Jacobian only, or by repeating f."""


class Equilibrium(eqx.Module):
    """An equilibrium and how it was found: `residual` is |f(z) - z|, `found` whether the tolerance was met."""

    z: PyTree
    steps: Int[Array, ""]
    residual: Float[Array, ""]
    found: Bool[Array, ""]


class EquilibriumLayer(eqx.Module):
    """z* = f(z*, x), `f(z, x)` any module that returns the structure of z.

    >>> layer = EquilibriumLayer(lambda z, x: 0.5 * z + x)
    >>> layer(jnp.ones(2)).round(3).tolist()
    [2.0, 2.0]

    `search`: "newton" finds what it starts near, also where f is no contraction; "fixed_point" needs a contraction and
    no memory. z starts at `start` or at x. Gradients solve one linear system by GMRES, whatever the search; keep
    `penalty` in the loss so that it stays solvable.

    Raises:
        InputError: f cannot be called, unknown search, tolerances or steps not positive.
        RuntimeError: no equilibrium within `max_steps`; `solve` returns it with `found` False instead.
    """

    f: Callable
    search: str = eqx.field(static=True, default="newton")
    rtol: float = eqx.field(static=True, default=1e-5)
    atol: float = eqx.field(static=True, default=1e-5)
    max_steps: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        if not callable(self.f):
            raise InputError("f must be a function (z, x) -> z")
        choose(SEARCHES, self.search, "search")
        check_positive(max_steps=self.max_steps)
        if not (self.rtol > 0 and self.atol > 0):
            raise InputError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")

    def __call__(self, x: PyTree, start: PyTree = None) -> PyTree:
        found = self.solve(x, start)
        return eqx.error_if(
            found.z, ~found.found, f"no equilibrium within {self.max_steps} steps of search {self.search!r}"
        )

    def solve(self, x: PyTree, start: PyTree = None) -> Equilibrium:
        """The equilibrium, and whether and how it was found."""
        start = x if start is None else start
        shape = jax.eval_shape(lambda: self.f(start, x))
        if jax.tree.map(jnp.shape, shape) != jax.tree.map(jnp.shape, start):
            raise InputError("f(z, x) must return the structure and shapes of z; give start where x has others")
        # tighter than the search, so that the gradient is as good as the equilibrium, but no tighter than rounding
        least = 16 * float(jnp.finfo(jnp.result_type(float)).eps)
        rtol, atol = max(self.rtol / 100, least), max(self.atol / 100, least)
        adjoint = optx.ImplicitAdjoint(lx.GMRES(rtol, atol, restart=64, stagnation_iters=64))
        solver = SEARCHES[self.search](rtol=self.rtol, atol=self.atol)
        # `x` and the parameters go in as args: what is captured has no gradient.
        args, how = (self.f, x), {"max_steps": self.max_steps, "adjoint": adjoint, "throw": False}
        if self.search == "fixed_point":
            solution = optx.fixed_point(_image, solver, start, args, **how)
        else:
            solution = optx.root_find(_gap, solver, start, args, **how)
        residual = trees.norm(_gap(solution.value, args))
        good = (solution.result == optx.RESULTS.successful) & jnp.isfinite(residual)
        return Equilibrium(solution.value, solution.stats["num_steps"], jax.lax.stop_gradient(residual), good)

    def penalty(self, z: PyTree, x: PyTree, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """|df/dz|² (Frobenius) over the number of states, estimated with one random direction (Hutchinson)."""
        direction = trees.normal_like(key, z)
        _, moved = jax.jvp(lambda z: self.f(z, x), (z,), (direction,))
        return jnp.real(trees.dot(moved, moved)) / trees.size(z)


def _image(z, args):
    f, x = args
    return f(z, x)


def _gap(z, args):
    return trees.subtract(_image(z, args), z)
