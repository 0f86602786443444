"""Gradients by equilibrium propagation: of one sample, of a batch for `learn.fit`, and the exact ones beside them.

g = (d drive / d params)^T delta + dL/d params at fixed activities,   delta = da/dbeta at rest
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from kinema.errors import InputError
from kinema.learn.equilibrium.dynamics import Loss, Relaxation
from kinema.learn.equilibrium.estimate import Derivative, Estimator, Nudging, Response
from kinema.learn.equilibrium.holomorphic import check_holomorphic, cross_entropy
from kinema.learn.equilibrium.homeostasis import mean_homeostatic_loss
from kinema.learn.gradient import GradientSource
from kinema.models.checks import check_positive
from kinema.models.equilibrium import EquilibriumLayer
from kinema.motion import trees


class EquilibriumPropagation(GradientSource):
    """Trains a `Relaxation` under `learn.fit`, on batches `(x, y)`, without back-propagation through its dynamics.

    `steps` are those of the free and of each nudged phase; `homeostasis` weighs the loss that makes the Jacobian
    symmetric, from `probes` random directions a sample. Metrics: "residual", the largest of the batch, "unsettled",
    the share of samples whose residual is above `tol`, and "homeostatic" where it has a weight.

    >>> EquilibriumPropagation(homeostasis=1.0).steps
    (150, 20)

    Raises:
        InputError: steps, probes or tol not positive, homeostasis negative; while tracing, batches that are no pair,
            a network that is not holomorphic, with nudges that are complex.
    """

    loss: Loss = eqx.field(static=True, default=cross_entropy)
    estimator: Estimator = Derivative()
    steps: tuple[int, int] = eqx.field(static=True, default=(150, 20))
    homeostasis: float = eqx.field(static=True, default=0.0)
    probes: int = eqx.field(static=True, default=5)
    tol: float = eqx.field(static=True, default=1e-3)

    def __check_init__(self):
        _check_steps(self.steps)
        check_positive(probes=self.probes)
        if not (self.tol > 0 and self.homeostasis >= 0):
            raise InputError(
                f"tol must be positive and homeostasis at least 0, got tol={self.tol}, homeostasis={self.homeostasis}"
            )

    def __call__(self, params, static, batch, key):
        if not (isinstance(batch, tuple) and len(batch) == 2):
            raise InputError(f"batches must be pairs (x, y), got a {type(batch).__name__}")
        found = _responses(eqx.combine(params, static), batch, self.loss, self.estimator, self.steps)

        def objective(params):
            net = eqx.combine(params, static)
            surrogate, value = _surrogate(net, batch, found, self.loss)
            if not self.homeostasis:
                return surrogate, {"loss": value}
            extra = mean_homeostatic_loss(net, found.a, batch[0], key, self.probes)
            return surrogate + self.homeostasis * extra, {"loss": value, "homeostatic": extra}

        grads, metrics = jax.grad(objective, has_aux=True)(params)
        unsettled = jnp.mean(~(found.residual <= self.tol), dtype=found.residual.dtype)
        return grads, metrics | {"residual": found.residual.max(), "unsettled": unsettled}


def ep_gradient(
    net: Relaxation,
    x: PyTree,
    y: PyTree,
    *,
    loss: Loss = cross_entropy,
    estimator: Estimator | None = None,
    steps: tuple[int, int] = (150, 20),
    tol: float = 1e-3,
) -> tuple[Any, dict[str, Array]]:
    """(grads, aux) of one sample; grads as `eqx.filter_grad` gives them. Without an estimator: `Derivative()`.

    `steps` are those of the free and of each nudged phase: memory does not grow with them. aux has "loss", "residual"
    and "settled", whether the residual of the free phase is at most `tol`: if not, the error of an unfinished free
    phase looks like one of the nudge.

    >>> from kinema.learn.equilibrium import dense_network
    >>> grads, aux = ep_gradient(dense_network((2, 3), 2, key=key), jnp.ones(2), jnp.array(0), steps=(20, 10))
    >>> grads.maps[0].weight.shape, aux["settled"].item()
    ((2, 3), True)

    Raises:
        InputError: steps not positive; a network that is not holomorphic, with nudges that are complex.
    """
    _check_steps(steps)
    batch = jax.tree.map(lambda z: jnp.asarray(z)[None], (x, y))
    found = _responses(net, batch, loss, Derivative() if estimator is None else estimator, steps)
    grads, value = eqx.filter_grad(lambda net: _surrogate(net, batch, found, loss), has_aux=True)(net)
    residual = found.residual[0]
    return grads, {"loss": value, "residual": residual, "settled": residual <= tol}


def implicit_gradient(
    net: Relaxation, x: PyTree, y: PyTree, *, loss: Loss = cross_entropy, search: str = "fixed_point", tol: float = 1e-6
) -> tuple[Any, dict[str, Array]]:
    """(grads, aux) of one sample by the implicit function theorem, the oracle of every estimator.

    The rest is found by `models.EquilibriumLayer` to relative and absolute `tol`, and one linear system gives the
    gradient. `search` "fixed_point" follows the dynamics; "newton" takes few steps, but where there are several rests
    it may find another. aux has "loss", "residual" (the norm) and "settled".

    Raises:
        InputError: unknown search, tol not positive.
    """

    def objective(net):
        found = EquilibriumLayer(_Step(net), search, rtol=tol, atol=tol, max_steps=1000).solve(x, net.init_state(x))
        return loss(net.out(net.activate(found.z)), y), (found.residual, found.found)

    (value, (residual, settled)), grads = eqx.filter_value_and_grad(objective, has_aux=True)(net)
    return grads, {"loss": value, "residual": residual, "settled": settled}


class _Step(eqx.Module):
    """The free dynamics as a map that a search can call."""

    net: Relaxation

    def __call__(self, u, x):
        return self.net.drive(self.net.activate(u), x)


def _responses(net: Relaxation, batch: tuple, loss: Loss, estimator: Estimator, steps: tuple[int, int]) -> Response:
    """Of every sample of a batch."""
    x, y = batch
    free, nudged = steps
    if estimator.is_complex:
        one_x, one_y = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape[1:], z.dtype), batch)
        check_holomorphic(net, one_x, one_y, loss)

    def one(x, y):
        return estimator(Nudging(net, x, y, loss, free, nudged))

    found = jax.vmap(one)(x, y)
    return jax.lax.stop_gradient(found)


def _surrogate(net: Relaxation, batch: tuple, found: Response, loss: Loss) -> tuple[Array, Array]:
    """A function of the network whose derivative is the mean estimate, and the mean loss."""

    def one(x, y, a, delta):
        value = loss(net.out(a), y)
        return trees.dot(delta, net.drive(a, x)) + value, value

    x, y = batch
    surrogate, value = jax.vmap(one)(x, y, found.a, found.delta)
    return surrogate.mean(), value.mean()


def _check_steps(steps: tuple[int, int]) -> None:
    if len(steps) != 2:
        raise InputError(f"steps must be two numbers, of the free and of a nudged phase, got {steps}")
    check_positive(free_steps=steps[0], nudged_steps=steps[1])
