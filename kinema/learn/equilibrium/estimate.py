"""Estimators of the error da/dbeta of a settled network, from states with a nudged output.

    derivative   d a / d beta at 0
    one-sided    (a(beta) - a(0)) / beta                              bias O(beta)
    symmetric    (a(beta) - a(-beta)) / (2 beta)                      bias O(beta^2)
    Cauchy       (1/N) Σ_k a(beta w^k) / (beta w^k), w = e^{2 pi i/N}   bias O(beta^N), within the radius of analyticity

All give (D^-1 - W)^-1 e with D = activate'(u), W = d drive / d a and e = dL/da; the gradient wants its transpose. The
two agree where W is symmetric.   [Laborieux & Zenke 2022, 2024]
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.learn.equilibrium.dynamics import Loss, Relaxation, nudged_step, root_mean_square, settle
from kinema.learn.equilibrium.holomorphic import cross_entropy, gradient
from kinema.models.checks import check_positive
from kinema.motion import trees


class Nudging(NamedTuple):
    """One sample of a task: the network, input and target, and the steps of the free and of each nudged phase."""

    net: Relaxation
    x: PyTree
    y: PyTree
    loss: Loss = cross_entropy
    free_steps: int = 150
    nudged_steps: int = 20

    def free(self) -> PyTree:
        """The state at rest without a nudge."""
        return settle(self.net, self.x, steps=self.free_steps).u

    def moved(self, u: PyTree, beta: Any) -> PyTree:
        """The state after a nudged phase from u; complex where beta is."""
        u = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, beta)), u)

        def move(u, _):
            return nudged_step(self.net, u, self.x, beta, self.y, self.loss), None

        return jax.lax.scan(move, u, length=self.nudged_steps)[0]

    def error(self, a: PyTree) -> PyTree:
        """dL/da."""
        return gradient(lambda a: self.loss(self.net.out(a), self.y))(a)

    def residual(self, u: PyTree) -> Float[Array, ""]:
        """Root mean square of the next free move."""
        return root_mean_square(trees.subtract(nudged_step(self.net, u, self.x), u))


class Response(NamedTuple):
    """What an estimator found, by layer: activities `a` at rest, the error `delta` = da/dbeta; and the residual."""

    a: PyTree
    delta: PyTree
    residual: Float[Array, ""]


class Estimator(eqx.Module):
    """How the error is measured."""

    @property
    def is_complex(self) -> bool:
        """Whether nudges leave the real line, so that the network must be holomorphic."""
        return False

    @abc.abstractmethod
    def __call__(self, task: Nudging) -> Response:
        """The response of one sample."""


class Derivative(Estimator):
    """The limit of no nudge, by forward mode: as many steps of the dynamics linearised where the network rests."""

    def __call__(self, task):
        u = task.free()
        a, tangent = jax.linearize(task.net.activate, u)
        _, move = jax.linearize(lambda u: nudged_step(task.net, u, task.x), u)
        error = task.error(a)
        v, _ = jax.lax.scan(
            lambda v, _: (trees.add(move(v), error), None), trees.zeros_like(u), length=task.nudged_steps
        )
        return Response(a, tangent(v), task.residual(u))


class RecurrentBackProp(Estimator):
    """The same steps of the transposed dynamics: what back-propagation gives, symmetric or not. The oracle.

    [Almeida 1987; Pineda 1987]
    """

    def __call__(self, task):
        u = task.free()
        a, pull = jax.vjp(task.net.activate, u)
        _, transposed = jax.vjp(lambda u: nudged_step(task.net, u, task.x), u)
        (error,) = pull(task.error(a))
        delta, _ = jax.lax.scan(
            lambda v, _: (trees.add(transposed(v)[0], error), None), trees.zeros_like(u), length=task.nudged_steps
        )
        return Response(a, delta, task.residual(u))


class Cauchy(Estimator):
    """A mean over `points` nudges on a circle of radius `beta`; 1 point is one-sided, 2 are symmetric.

    More points pay while beta lies within the radius of analyticity: the error then falls as beta^points. Conjugate
    nudges give conjugate states, so N points cost two real phases at most and (N - 1) // 2 complex ones, each of about
    two real. Betas that work: 0.5 with 4 points and more, 0.1 with 2, 1e-3 with 1.

    >>> Cauchy(0.5, 4).is_complex
    True

    Raises:
        InputError: beta is 0 or not finite, points below 1.
    """

    beta: float = eqx.field(static=True)
    points: int = eqx.field(static=True)

    def __check_init__(self):
        _check(self.beta, self.points)

    @property
    def is_complex(self) -> bool:
        return self.points > 2

    def __call__(self, task):
        u = task.free()
        a = task.net.activate(u)

        def quotient(beta):
            nudged = task.net.activate(task.moved(u, beta))
            base = a if self.points == 1 else jax.tree.map(lambda leaf: 0.0, a)
            return jax.tree.map(lambda leaf, base: ((leaf - base) / beta).real, nudged, base)

        betas = _circle(self.beta, self.points)[: self.points // 2 + 1]
        on_line = np.arange(len(betas)) * 2 % self.points == 0  # k = 0 and k = N / 2
        total = _sum(quotient, np.real(betas[on_line]), 1, u)
        if self.is_complex:
            total = trees.add(total, _sum(quotient, betas[~on_line], 2, u))
        return Response(a, trees.scale(total, 1 / self.points), task.residual(u))


class OneSided(Estimator):
    """(a(beta) - a(0)) / beta, biased by O(beta).

    Raises:
        InputError: beta is 0 or not finite.
    """

    beta: float = eqx.field(static=True)

    def __check_init__(self):
        _check(self.beta, 1)

    def __call__(self, task):
        return Cauchy(self.beta, 1)(task)


class Symmetric(Estimator):
    """(a(beta) - a(-beta)) / (2 beta), biased by O(beta^2).

    Raises:
        InputError: beta is 0 or not finite.
    """

    beta: float = eqx.field(static=True)

    def __check_init__(self):
        _check(self.beta, 2)

    def __call__(self, task):
        return Cauchy(self.beta, 2)(task)


class Online(Estimator):
    """Cauchy without phases: the nudge goes round the circle, a point every `nudged_steps` steps, and never rests.

    The first `free_steps` steps warm up; over the turn after them the mean of a is the activity at rest, that of
    a / beta the error. The residual is how far the mean is from rest, which holds a bias of O(beta^points) too.

    Raises:
        InputError: beta is 0 or not finite, points below 3.
    """

    beta: float = eqx.field(static=True)
    points: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        _check(self.beta, self.points)
        if self.points < 3:
            raise InputError(f"points must be at least 3 to go round a circle, got {self.points}")

    @property
    def is_complex(self) -> bool:
        return True

    def __call__(self, task):
        circle = _circle(self.beta, self.points)
        u = task.net.init_state(task.x)
        circle = jnp.asarray(circle, jnp.result_type(*jax.tree.leaves(u), 1j))
        warm = -(-task.free_steps // task.nudged_steps)
        u = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, circle)), u)

        def visit(u, beta):
            u = task.moved(u, beta)
            a = task.net.activate(u)
            return u, (u, a, jax.tree.map(lambda leaf: leaf / beta, a))

        u, _ = jax.lax.scan(lambda u, beta: (task.moved(u, beta), None), u, circle[np.arange(-warm, 0) % self.points])
        _, seen = jax.lax.scan(visit, u, circle)
        u, a, delta = jax.tree.map(lambda leaf: leaf.mean(0).real, seen)
        return Response(a, delta, task.residual(u))


def _circle(beta: float, points: int) -> np.ndarray:
    return beta * np.exp(2j * np.pi * np.arange(points) / points)


def _sum(quotient: Callable, betas: np.ndarray, times: int, like: PyTree) -> PyTree:
    """`times` the sum of the quotients, all nudges side by side."""
    dtype = jnp.result_type(*jax.tree.leaves(like))
    wide = jnp.result_type(dtype, 1j) if np.iscomplexobj(betas) else dtype
    return jax.tree.map(lambda leaf: times * leaf.sum(0), jax.vmap(quotient)(jnp.asarray(betas, wide)))


def _check(beta: float, points: int) -> None:
    if not (np.isfinite(beta) and beta != 0):
        raise InputError(
            f"beta must be a finite number other than 0, got {beta}; Derivative() is the limit of no nudge"
        )
    check_positive(points=points)
