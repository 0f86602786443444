"""A federation simulated as one program: rounds by scan, clients by vmap, local steps by scan."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.learn.federated.client import ClientRule, local_round
from kinema.learn.federated.partition import Clients, stacked
from kinema.learn.federated.server import Server, begin_server, serve
from kinema.learn.gradient import BackPropagation, GradientSource, Objective
from kinema.learn.history import History
from kinema.learn.population import Measure, RoundRule, average, replicate
from kinema.learn.rounds import run_rounds
from kinema.learn.trainable import Trainable, Where
from kinema.motion import trees


class Federated(RoundRule):
    """One round of a federation; members are the clients' control variates, or () for rules without.

    `clients` is the number of all, `mean_rows` the mean of their rows if clients count by them, else None.
    """

    client: ClientRule
    source: GradientSource
    clients: int
    local_steps: int
    local_lr: Any
    server_lr: Any
    batch_size: int | None = None
    static: PyTree = None
    local_optimizer: optax.GradientTransformation | None = None
    server_optimizer: optax.GradientTransformation | None = None
    mean_rows: Any = None

    def begin(self, params: PyTree, momentum: PyTree = None) -> tuple[Server, PyTree]:
        """(server, members) before the first round; neither shares its buffers with `params` once it runs."""
        control, previous = self.client.needs_control, self.client.needs_previous
        server = begin_server(
            params, previous=previous, control=control, optimizer=self.server_optimizer, momentum=momentum
        )
        return server, replicate(trees.zeros_like(params), self.clients) if control else ()

    def local(self, server, member, data, key):
        control, message, aux = local_round(
            self.client,
            self.source,
            self.static,
            server,
            member,
            data,
            key,
            steps=self.local_steps,
            rate=self.local_lr,
            batch_size=self.batch_size,
            optimizer=self.local_optimizer,
        )
        if self.mean_rows is not None:
            message["weight"] = data.sizes / self.mean_rows
        return control, message, aux

    def serve(self, server, messages, delivered):
        rate, optimizer = self.server_lr, self.server_optimizer
        return serve(server, messages, delivered, rate=rate, clients=self.clients, optimizer=optimizer)


@dataclass(frozen=True)
class FedResult:
    """What a federation came to. `history` as in `Rounds`; `lost` counts replies that were not finite, by client."""

    model: PyTree
    history: History
    server: Server
    controls: PyTree
    lost: dict[int, int]


def simulate(
    rule: ClientRule,
    loss: Objective | GradientSource,
    model: PyTree,
    clients: Clients | PyTree,
    *,
    rounds: int,
    local_steps: int,
    local_lr: float,
    key: PRNGKeyArray,
    server_lr: float | None = None,
    clients_per_round: int | None = None,
    batch_size: int | None = None,
    weights: Literal["uniform", "rows"] = "uniform",
    dropout: float = 0.0,
    local_optimizer: optax.GradientTransformation | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    init_direction: Literal["zero", "large_batch"] = "zero",
    trainable: Trainable | Where = None,
    measure: Measure | None = None,
    chunk: int = 50,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> FedResult:
    """Train `model` on data that stay with their clients, by one of the rules `fedavg` ... `scaffold_m_vr`.

    `loss(model, batch, key) -> (loss, metrics)` as in `learn.fit`. `clients` come from `federated.divide`, or are
    leaves (clients, rows, ...). In every round `clients_per_round` of them (None: all) make `local_steps` steps of
    `local_lr` on batches of `batch_size` rows (None: all rows). `server_lr` None is local_lr * local_steps, which for
    `fedavg` and `scaffold` averages models; rules with momentum want about 1 / curvature. A reply is lost with
    probability `dropout`. `init_direction="large_batch"` starts g at the gradient on all rows, which rules with
    variance reduction need. `measure(model)` adds metrics to every round.

    >>> from kinema.learn.federated import scaffold, simulate
    >>> bowl = lambda x, batch, key: (0.5 * jnp.mean(batch["a"] * (x - batch["b"]) ** 2), {})
    >>> clients = {"a": jnp.array([[1.0], [3.0]]), "b": jnp.array([[0.0], [4.0]])}
    >>> run = simulate(scaffold(), bowl, jnp.zeros(()), clients, rounds=40, local_steps=5, local_lr=0.1, key=jr.key(0))
    >>> round(float(run.model), 3)  # the minimum, Σ a b / Σ a
    3.0

    Raises:
        InputError: an argument is not acceptable: a client with no data, clients_per_round outside 1..N, leading axes
            that differ, integer arrays in the model (unless `trainable` says what learns).
        NotFinite: no client that took part in a round gave a finite reply.
        StoreCorrupt, OSError, KeyboardInterrupt: as `learn.fit`.
    """
    clients = clients if isinstance(clients, Clients) else stacked(clients)
    count = len(clients.sizes)
    some = count if clients_per_round is None else clients_per_round
    if isinstance(some, bool) or not 1 <= some <= count:
        raise InputError(f"clients_per_round must be in 1..{count}, the number of clients, got {clients_per_round}")
    check_settings(local_steps, local_lr, server_lr, batch_size)
    for name, value, known in (("weights", weights, ("uniform", "rows")), ("init_direction", init_direction, STARTS)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if batch_size is None and int(clients.sizes.min()) < len(jax.tree.leaves(clients.data)[0][0]):
        raise InputError("batch_size=None takes all rows, which needs clients of equal size; give a batch_size")
    params, static = split_model(model, trainable)
    source = loss if isinstance(loss, GradientSource) else BackPropagation(loss)
    federated = Federated(
        rule,
        source,
        count,
        local_steps,
        local_lr,
        local_lr * local_steps if server_lr is None else server_lr,
        batch_size,
        static,
        local_optimizer,
        server_optimizer,
        float(clients.sizes.mean()) if weights == "rows" else None,
    )
    key_run, key_start = jr.split(key)
    momentum = None
    if init_direction == "large_batch":
        by_rows = weights == "rows"
        momentum = _gradient(source, params, static, clients, clients.sizes if by_rows else None, key_start)
    server, members = federated.begin(params, momentum)
    look = None if measure is None else _Look(measure, static)
    run = run_rounds(
        federated,
        server,
        members,
        clients,
        rounds=rounds,
        key=key_run,
        some=some,
        dropout=dropout,
        measure=look,
        chunk=chunk,
        folder=folder,
        resume=resume,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    return FedResult(eqx.combine(run.server.model, static), run.history, run.server, run.members, run.lost)


STARTS = ("zero", "large_batch")


class _Look(eqx.Module):
    """`measure` on the whole model."""

    measure: Measure
    static: PyTree

    def __call__(self, server: Server):
        return self.measure(eqx.combine(server.model, self.static))


def split_model(model: PyTree, trainable: Trainable | Where) -> tuple[PyTree, PyTree]:
    """(params, static), as `Trainable.split`.

    Raises:
        InputError: integer arrays in the model although nothing was said of what learns: they have no average.
    """
    if trainable is None:
        for name, leaf in trees.leaf_names(model).items():
            if not trees.is_inexact(leaf):
                raise InputError(
                    f"model leaf {name} is {leaf.dtype}, which has no average; trainable='*' keeps it as it is"
                )
    trainable = trainable if isinstance(trainable, Trainable) else Trainable(trainable)
    return trainable.split(model)


def client_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """What a federation outside this process needs to draw as `simulate` does from `key`.

    Client i has the key `fold_in` of the first and i; the second is that of `choose_members`.
    """
    key_members, key_rounds = jr.split(jr.split(key)[0])
    return key_members, jr.split(key_rounds)[0]


def check_settings(local_steps: int, local_lr: float, server_lr: float | None, batch_size: int | None) -> None:
    """Raises:
    InputError: counts below 1, rates that are not positive.
    """
    for name, value in {"local_steps": local_steps, "batch_size": batch_size}.items():
        if name == "batch_size" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} must be a whole number >= 1, got {value!r}")
    for name, rate in {"local_lr": local_lr, "server_lr": server_lr}.items():
        if rate is not None and not 0 < rate < float("inf"):
            raise InputError(f"{name} must be positive, got {rate}")


@eqx.filter_jit
def _gradient(source, params, static, clients: Clients, weights, key) -> PyTree:
    """The mean of the clients' gradients on all their rows; a client with few rows has them in turn."""

    def one(client: Clients):
        rows = len(jax.tree.leaves(client.data)[0])
        return source(params, static, client.batch(jnp.arange(rows), jnp.zeros((), jnp.int32), rows), key)[0]

    found = jax.vmap(one)(clients)
    return average(found, jnp.ones(len(clients.sizes)) if weights is None else weights)
