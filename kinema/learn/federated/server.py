"""What the server does in a round, and what it sends.   [Cheng et al. 2024]

    g ← Σ_S w_i (x − y_K^i) / (η K) / Σ_S w_i      x ← x − γ g      c ← c + 1/N Σ_S w_i (c_i new − c_i old)

S are the clients whose replies came, N is the number of all. Weights are 1, or the rows of a client over their mean.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from kinema.learn.population import average
from kinema.motion import trees


class Server(eqx.Module):
    """The server's state, all of which clients may see.

    `model` holds the parameters that learn; `momentum` is g, `previous` the model before (rules with variance
    reduction) and `control` is c (rules with control variates), else None. `round` counts rounds with a reply.
    """

    model: PyTree
    momentum: PyTree
    previous: PyTree
    control: PyTree
    opt_state: PyTree
    round: Int[Array, ""]


def begin_server(
    params: PyTree,
    *,
    previous: bool = False,
    control: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    momentum: PyTree = None,
) -> Server:
    """Before the first round: g is `momentum` or zero, c is zero."""
    zero = trees.zeros_like(params)
    return Server(
        params,
        zero if momentum is None else momentum,
        params if previous else None,
        zero if control else None,
        None if optimizer is None else optimizer.init(params),
        jnp.zeros((), jnp.int32),
    )


def serve(
    server: Server,
    messages: dict[str, PyTree],
    delivered: Bool[Array, " some"],
    *,
    rate: Any,
    clients: int,
    optimizer: optax.GradientTransformation | None = None,
) -> Server:
    """The server after the replies of a round, stacked; those that did not come are zero.

    `rate` is γ; an `optimizer` takes g for a gradient in its place.
    """
    weights = delivered * messages.get("weight", jnp.ones(delivered.shape))
    g = average(messages["direction"], weights)
    opt_state, control = server.opt_state, server.control
    if optimizer is None:
        model = trees.add_scaled(server.model, -rate, g)
    else:
        updates, opt_state = optimizer.update(g, opt_state, server.model)
        model = optax.apply_updates(server.model, updates)
    if control is not None:
        change = jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), messages["control"])
        control = trees.add_scaled(control, 1 / clients, change)
    previous = None if server.previous is None else server.model
    return Server(model, g, previous, control, opt_state, server.round + 1)
