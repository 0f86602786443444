"""Networks that settle: u <- drive(a, x) + beta dL/da, with a = activate(u), until nothing moves.

The nudge is +beta, towards larger loss: then da/dbeta is the error itself.   [Laborieux & Zenke 2024]
"""

import abc
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from kinema.errors import InputError
from kinema.learn.equilibrium.holomorphic import cross_entropy, gradient
from kinema.models.checks import check_positive
from kinema.motion import trees

Loss = Callable[[Any, Any], Array]


class Relaxation(eqx.Module):
    """A network by its drive: at rest the state is u = drive(activate(u), x).

    The state is any tree with one array a layer; `activate` turns it into the activity a. Everything works on one
    sample. For Cauchy estimates all three functions must be holomorphic.
    """

    @abc.abstractmethod
    def drive(self, a: PyTree, x: PyTree) -> PyTree:
        """What the state is drawn to, given all activities and the input."""

    @abc.abstractmethod
    def activate(self, u: PyTree) -> PyTree:
        """The activities of a state."""

    @abc.abstractmethod
    def out(self, a: PyTree) -> PyTree:
        """What the loss compares with the target, often logits."""

    @abc.abstractmethod
    def init_state(self, x: PyTree) -> PyTree:
        """The state before anything has moved."""


class Flow(Relaxation):
    """Any vector field du/dt = field(u, x), followed in Euler steps of size `rate`; the state is its own activity.

    `readout(u)` is what the loss sees, `start` the first state. With `Downhill(energy)` as field it is a network with
    an energy, for which equilibrium propagation is exact.

    >>> net = Flow(lambda u, x: x - u, lambda u: u, jnp.zeros(2), rate=0.5)
    >>> settle(net, jnp.ones(2)).u.round(3).tolist()
    [1.0, 1.0]

    Raises:
        InputError: rate not positive.
    """

    field: Callable
    readout: Callable
    start: PyTree
    rate: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        if not self.rate > 0:
            raise InputError(f"rate must be positive, got {self.rate}")

    def drive(self, a, x):
        return jax.tree.map(lambda u, slope: u + self.rate * slope, a, self.field(a, x))

    def activate(self, u):
        return u

    def out(self, a):
        return self.readout(a)

    def init_state(self, x):
        return jax.lax.stop_gradient(self.start)


class Downhill(eqx.Module):
    """The vector field -dE/du of `energy(u, x)`, a scalar.

    >>> Downhill(lambda u, x: 0.5 * jnp.sum((u - x) ** 2))(jnp.zeros(2), jnp.ones(2)).tolist()
    [1.0, 1.0]
    """

    energy: Callable

    def __call__(self, u: PyTree, x: PyTree) -> PyTree:
        return jax.tree.map(jnp.negative, gradient(lambda u: self.energy(u, x))(u))


class Settled(eqx.Module):
    """Where a network came to rest: `residual` is the root mean square of a move there, `settled` if small."""

    u: PyTree
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    settled: Bool[Array, ""]


def nudged_step(net: Relaxation, u: PyTree, x: PyTree, beta: Any = 0.0, y: PyTree = None, loss: Loss = cross_entropy):
    """The next state. A beta of the number 0 leaves the loss alone."""
    a = net.activate(u)
    drive = net.drive(a, x)
    if isinstance(beta, float | int) and beta == 0:
        return drive
    error = gradient(lambda a: loss(net.out(a), y))(a)
    return jax.tree.map(lambda d, e: d + beta * e, drive, error)


def settle(
    net: Relaxation,
    x: PyTree,
    *,
    beta: float | complex | Inexact[Array, ""] = 0.0,
    y: PyTree = None,
    loss: Loss = cross_entropy,
    state: PyTree = None,
    steps: int | None = None,
    tol: float = 1e-5,
    max_steps: int = 1000,
) -> Settled:
    """Move the state of one sample until it rests, from `state` or the network's first.

    With `steps` that many moves are made, and derivatives of either mode pass through them; else moves are made until
    the residual is at most `tol` or `max_steps` are done. `beta` nudges the output up the loss of `y`; it may be
    complex. A state that did not settle is marked, and told by a warning where its value is known: for a batch under
    `jax.vmap` call `warn_unsettled`.

    Raises:
        InputError: steps, max_steps or tol not positive; beta without y.
    """
    check_positive(max_steps=max_steps, **({} if steps is None else {"steps": steps}))
    if not tol > 0:
        raise InputError(f"tol must be positive, got {tol}")
    nudged = not (isinstance(beta, float | int) and beta == 0)
    if nudged and y is None:
        raise InputError("a nudge needs the target y, got beta without y")
    u = net.init_state(x) if state is None else state
    u = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, beta)), u)

    def move(u):
        return nudged_step(net, u, x, beta, y, loss)

    if steps is not None:
        u, _ = jax.lax.scan(lambda u, _: (move(u), None), u, length=steps)
        residual, count = jax.lax.stop_gradient(root_mean_square(trees.subtract(move(u), u))), jnp.asarray(steps)
    else:

        def body(carry):
            u, _, count = carry
            new = move(u)
            return new, root_mean_square(trees.subtract(new, u)), count + 1

        first = u, jnp.asarray(jnp.inf, jnp.zeros(()).dtype), jnp.asarray(0)
        u, residual, count = jax.lax.while_loop(lambda c: (c[1] > tol) & (c[2] < max_steps), body, first)
    return warn_unsettled(Settled(u, residual, count, residual <= tol))


def warn_unsettled(found: Settled) -> Settled:
    """`found`, one sample or a batch of them, after a warning with the count of those that did not settle."""
    if isinstance(found.settled, Tracer):
        return found
    resting = np.asarray(found.settled)
    if not resting.all():
        worst = float(np.max(np.nan_to_num(np.asarray(found.residual), nan=np.inf)))
        warnings.warn(
            f"{int((~resting).sum())} of {resting.size} samples have not settled after {int(np.max(found.steps))} "
            f"steps, residual up to {worst:.2g}; take more steps, or smaller weights",
            stacklevel=3,
        )
    return found


def settled_loss(net: Relaxation, x: PyTree, y: PyTree, *, loss: Loss = cross_entropy, steps: int = 150):
    """The loss after `steps` moves: what back-propagation through time differentiates. Memory grows with `steps`.

    Raises:
        InputError: steps not positive.
    """
    check_positive(steps=steps)
    u, _ = jax.lax.scan(lambda u, _: (nudged_step(net, u, x), None), net.init_state(x), length=steps)
    return loss(net.out(net.activate(u)), y)


def root_mean_square(tree: PyTree) -> Float[Array, ""]:
    """Over all numbers of the tree."""
    return trees.norm(tree) / trees.size(tree) ** 0.5
