"""What a client does in a round: K local steps in a direction that its rule corrects.   [Cheng et al. 2024]

    d = β (∇F_i(y; ξ) + c − c_i) + (1 − β) g                                       momentum
    d = ∇F_i(y; ξ) + β (c − c_i) + (1 − β) (g − ∇F_i(x'; ξ))                       momentum with variance reduction

g is the direction in which the server moved last, c and c_i are the control variates of SCAFFOLD [Karimireddy et al.
2020] (without them c − c_i is left out), x' the model of the round before. β = 1 leaves momentum out.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.learn.federated.partition import Clients
from kinema.learn.federated.server import Server
from kinema.learn.gradient import GradientSource
from kinema.motion import trees


class ClientRule(eqx.Module):
    """How a local gradient becomes the direction of a local step. Made by the functions of this module.

    Raises:
        InputError: beta outside (0, 1].
    """

    name: str
    beta: float | Float[Array, "..."]  # an array where settings are mapped over
    momentum: bool
    needs_control: bool
    needs_previous: bool

    def __check_init__(self):
        if isinstance(self.beta, int | float) and not 0 < self.beta <= 1:
            raise InputError(f"beta must be in (0, 1], got {self.beta}; 1 leaves momentum out")

    def direction(self, grad: PyTree, previous: PyTree, momentum: PyTree, shift: PyTree) -> PyTree:
        """d, like `grad`: `previous` is the gradient at x' on the same batch, `shift` is c − c_i.

        What the rule does not need is not looked at.
        """
        beta = self.beta
        if self.needs_previous:
            corrected = jax.tree.map(lambda a, b, g: a + (1 - beta) * (g - b), grad, previous, momentum)
            found = trees.add_scaled(corrected, beta, shift) if self.needs_control else corrected
        else:
            found = trees.add(grad, shift) if self.needs_control else grad
            if self.momentum:
                found = jax.tree.map(lambda d, g: beta * d + (1 - beta) * g, found, momentum)
        return jax.tree.map(lambda d, like: d.astype(like.dtype), found, grad)


def fedavg() -> ClientRule:
    """Plain gradients: clients that differ drift apart, and the average is biased [McMahan et al. 2017]."""
    return ClientRule("FedAvg", 1.0, False, False, False)


def fedavg_m(beta: float | Float[Array, ""] = 0.1) -> ClientRule:
    """The server's direction joins every local step: the bias of `fedavg` at local steps of β η.

    Raises:
        InputError: beta outside (0, 1].
    """
    return ClientRule("FedAvg-M", beta, True, False, False)


def scaffold() -> ClientRule:
    """Control variates take the drift away; each client keeps one."""
    return ClientRule("SCAFFOLD", 1.0, False, True, False)


def scaffold_m(beta: float | Float[Array, ""] = 0.1) -> ClientRule:
    """Control variates and momentum: the one to begin with where few clients take part.

    Raises:
        InputError: beta outside (0, 1].
    """
    return ClientRule("SCAFFOLD-M", beta, True, True, False)


def fedavg_m_vr(beta: float | Float[Array, ""] = 0.1) -> ClientRule:
    """Momentum without the noise of batches; keeps the whole bias of `fedavg`. Twice the gradients.

    Start it with `init_direction="large_batch"` and small local rates.

    Raises:
        InputError: beta outside (0, 1].
    """
    return ClientRule("FedAvg-M-VR", beta, True, False, True)


def scaffold_m_vr(beta: float | Float[Array, ""] = 0.1) -> ClientRule:
    """Control variates and momentum without the noise of batches. Twice the gradients; start it as `fedavg_m_vr`.

    Raises:
        InputError: beta outside (0, 1].
    """
    return ClientRule("SCAFFOLD-M-VR", beta, True, True, True)


ALL_RULES = {
    "fedavg": fedavg,
    "fedavg-m": fedavg_m,
    "scaffold": scaffold,
    "scaffold-m": scaffold_m,
    "fedavg-m-vr": fedavg_m_vr,
    "scaffold-m-vr": scaffold_m_vr,
}
"""Rules by name."""


def local_round(
    rule: ClientRule,
    source: GradientSource,
    static: PyTree,
    server: Server,
    control: PyTree,
    data: Clients,
    key: PRNGKeyArray,
    *,
    steps: int,
    rate: float | Float[Array, ""],
    batch_size: int | None,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[PyTree, dict[str, PyTree], dict[str, Array]]:
    """(control, message, aux) of one client: message "direction" is (x − y_K) / (η K), and "control" is c_i's change.

    `data` is one client of `Clients`, and `key` its own, the same in every round. Batches are taken in turn from an
    order of the client's rows that is drawn anew every round. An `optimizer` takes d for a gradient, from a fresh state
    every round.
    """
    key_order, key_loss = jr.split(jr.fold_in(key, server.round))
    order = data.order(key_order)
    shift = trees.subtract(server.control, control) if rule.needs_control else None
    x = server.model
    opt_state = None if optimizer is None else optimizer.init(x)

    def step(carry, k):
        y, opt_state, total = carry
        batch = data.batch(order, k, batch_size)
        key_step = jr.fold_in(key_loss, k)
        grad, aux = source(y, static, batch, key_step)
        previous = source(server.previous, static, batch, key_step)[0] if rule.needs_previous else None
        d = rule.direction(grad, previous, server.momentum, shift)
        if optimizer is None:
            y = trees.add_scaled(y, -rate, d)
        else:
            updates, opt_state = optimizer.update(d, opt_state, y)
            y = optax.apply_updates(y, updates)
        total = trees.add(total, grad) if rule.needs_control else None
        return (y, opt_state, total), aux

    total = trees.zeros_like(x) if rule.needs_control else None
    (y, _, total), aux = jax.lax.scan(step, (x, opt_state, total), jnp.arange(steps))
    message = {"direction": trees.scale(trees.subtract(x, y), 1 / (rate * steps))}
    if rule.needs_control:
        # raw gradients, in the forms with momentum too
        renewed = trees.scale(total, 1 / steps)
        message["control"] = trees.subtract(renewed, control)
        control = renewed
    return control, message, {name: values.mean(0) for name, values in aux.items()}
