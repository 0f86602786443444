"""The federated rules of `learn.federated` as Flower apps: the same steps on real nodes, clients' state in contexts.

A round's message holds ArrayRecords "arrays" (x), "momentum" (g), and where the rule needs them "control" (c) and
"previous"; the reply has "arrays" = (x - y_K) / (eta K) and "control_delta". With equal settings and key the nodes make
the numbers of `simulate`, whatever carries the messages.
"""

# pyright: reportMissingImports=false
# flwr wants older versions of what the command line stands on, so it is not there where types are checked
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from kinema.errors import InputError, require
from kinema.learn.federated.client import ClientRule, local_round
from kinema.learn.federated.partition import Clients
from kinema.learn.federated.server import Server, begin_server, serve
from kinema.learn.federated.simulation import check_settings, client_keys, split_model
from kinema.learn.gradient import BackPropagation, GradientSource, Objective
from kinema.learn.population import choose_members, count_members
from kinema.learn.trainable import Trainable, Where
from kinema.motion import trees
from kinema.motion.weights import load_weights, read_meta, save_weights

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from flwr.serverapp.strategy.strategy_utils import sample_nodes
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:
    require("flwr", "federated")
    raise

STATE = "server.safetensors"
CONTROL = "kinema.control"  # of a client's context
SERVER = 1  # its number among the nodes


class FederatedStrategy(FedAvg):
    """The server's side of a rule, for `strategy.start(grid, strategy.initial_arrays(), num_rounds=...)`.

    Waits until `clients` nodes are there, takes `clients_per_round` of them a round, and runs what `simulate` runs; the
    other settings are those of `simulate`. `model(arrays)` is the model of a result. With a `folder` the server's state
    is written there after every round, and `resume=True` goes on from it; the clients' is kept by Flower.

    `lost` counts by node the replies that were not finite; they are dropped with a warning. With
    FLWR_TELEMETRY_ENABLED=0 in the environment Flower does not report its use.

    Raises:
        InputError: an argument is not acceptable; later, a reply that lacks a record or has arrays of the wrong shape.
        MissingExtra: flwr is not installed.
    """

    def __init__(
        self,
        rule: ClientRule,
        model: PyTree,
        *,
        clients: int,
        local_steps: int,
        local_lr: float,
        key: PRNGKeyArray,
        server_lr: float | None = None,
        clients_per_round: int | None = None,
        server_optimizer: optax.GradientTransformation | None = None,
        trainable: Trainable | Where = None,
        folder: str | os.PathLike | None = None,
        resume: bool = False,
        fraction_evaluate: float = 0.0,
    ):
        super().__init__(fraction_evaluate=fraction_evaluate, min_available_nodes=clients)
        check_settings(local_steps, local_lr, server_lr, None)
        self.some = clients if clients_per_round is None else clients_per_round
        if not 1 <= self.some <= clients:
            raise InputError(f"clients_per_round must be in 1..{clients}, the number of clients, got {self.some}")
        self.rule, self.clients, self.optimizer = rule, clients, server_optimizer
        self.rate = local_lr * local_steps if server_lr is None else server_lr
        self.key = client_keys(key)[1]
        self.lost: Counter[int] = Counter()
        params, self.static = split_model(model, trainable)
        control, previous = rule.needs_control, rule.needs_previous
        self.server = begin_server(params, previous=previous, control=control, optimizer=server_optimizer)
        self.rounds = 0
        self.file = None if folder is None else Path(folder) / STATE
        if self.file is not None:
            self._open(self.file, resume)

    def initial_arrays(self) -> ArrayRecord:
        """The parameters to start from."""
        return to_record(self.server.model)

    def model(self, arrays: ArrayRecord) -> PyTree:
        """The model with the parameters of a record.

        Raises:
            InputError: arrays of other names or shapes.
        """
        return eqx.combine(from_record(arrays, self.server.model, "arrays"), self.static)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.server = eqx.tree_at(lambda s: s.model, self.server, from_record(arrays, self.server.model, "arrays"))
        _, nodes = sample_nodes(grid, self.clients, self.some)
        chosen = choose_members(self.key, self.rounds, len(nodes), self.some)
        sent = {"momentum": self.server.momentum, "control": self.server.control, "previous": self.server.previous}
        content = {name: to_record(tree) for name, tree in sent.items() if tree is not None}
        counted = ConfigRecord({**config, "server-round": server_round, "round": int(self.server.round)})
        # one record for all messages: nothing of a single client may be written into it
        record = RecordDict({"arrays": arrays, "config": counted, **content})
        ids = sorted(nodes)
        return self._construct_messages(record, [ids[index] for index in np.asarray(chosen)], MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        self.rounds += 1
        received, kept = [], []
        # in the order of the nodes, so that sums do not depend on who was first
        for reply in sorted(valid, key=lambda reply: reply.metadata.src_node_id):
            message = self._message(reply)
            if trees.all_finite(message):
                received.append(message)
                kept.append(reply.content)
            else:
                node = reply.metadata.src_node_id
                self.lost[node] += 1
                warnings.warn(f"the reply of node {node} in round {server_round} is not finite; dropped", stacklevel=2)
        if not received:
            return None, None
        messages = jax.tree.map(lambda *leaves: jnp.stack(leaves), *received)
        delivered = jnp.ones(len(received), bool)
        self.server = _serve(self.server, messages, delivered, self.rate, self.clients, self.optimizer)
        if self.file is not None:
            save_weights(self.file, self.server, {"rounds": self.rounds, "rule": self.rule.name})
        return to_record(self.server.model), self.train_metrics_aggr_fn(kept, self.weighted_by_key)

    def _message(self, reply: Message) -> dict[str, PyTree]:
        node, content = reply.metadata.src_node_id, reply.content
        wanted = {"arrays": "direction"} | ({"control_delta": "control"} if self.rule.needs_control else {})
        for name in wanted:
            if name not in content.array_records:
                raise InputError(
                    f"the reply of node {node} has no {name!r}, which {self.rule.name} needs; "
                    f"it has {', '.join(sorted(content.array_records)) or 'no arrays'}"
                )
        return {
            what: from_record(content.array_records[name], self.server.model, f"{name!r} of node {node}")
            for name, what in wanted.items()
        }

    def _open(self, file: Path, resume: bool) -> None:
        if file.exists() and not resume:
            raise InputError(f"{file.parent} already holds a run; give another folder, or resume=True")
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            meta = read_meta(file)
            if meta.get("rule") != self.rule.name:
                raise InputError(f"{file.parent} holds a run of {meta.get('rule')}, not of {self.rule.name}")
            self.server, self.rounds = load_weights(file, self.server), int(meta["rounds"])


def client_app(
    rule: ClientRule,
    loss: Objective | GradientSource,
    model: PyTree,
    data: Callable[[Context], PyTree],
    *,
    local_steps: int,
    local_lr: float,
    key: PRNGKeyArray,
    batch_size: int | None = None,
    local_optimizer: optax.GradientTransformation | None = None,
    trainable: Trainable | Where = None,
) -> ClientApp:
    """The clients' side of a rule. `data(context)` gives the rows of a client, a tree of arrays; keep them if slow.

    `model` gives the structure; its parameters come with the messages. A client's number is the "partition-id" of its
    node, as Flower's simulation sets it. Its control variate lives in `context.state`; a reply that gets lost on the
    way leaves it a step ahead of the server's. Ways to evaluate and query may be added to the app.

    Raises:
        InputError: an argument is not acceptable; later, in the reply, no data, or a message of the wrong shape.
        MissingExtra: flwr is not installed.
    """
    check_settings(local_steps, local_lr, None, batch_size)
    params, static = split_model(model, trainable)
    source = loss if isinstance(loss, GradientSource) else BackPropagation(loss)
    key_members, _ = client_keys(key)
    options: dict[str, Any] = {"steps": local_steps, "batch_size": batch_size, "optimizer": local_optimizer}
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        records = message.content.array_records
        server = Server(
            from_record(records["arrays"], params, "arrays"),
            from_record(records["momentum"], params, "momentum"),
            from_record(records["previous"], params, "previous") if rule.needs_previous else None,
            from_record(records["control"], params, "control") if rule.needs_control else None,
            None,
            jnp.asarray(int(message.content.config_records["config"]["round"]), jnp.int32),  # pyright: ignore
        )
        member = int(context.node_config["partition-id"])
        rows = data(context)
        count = count_members(rows, "rows of a client")
        # clients of about equal size share a compiled program
        filled = count if batch_size is None else 1 << (count - 1).bit_length()
        index = np.minimum(np.arange(filled), count - 1)
        client = Clients(jax.tree.map(lambda x: jnp.asarray(x)[index], rows), jnp.asarray(count, jnp.int32))
        control: PyTree = ()
        if rule.needs_control:
            held = context.state.array_records
            control = from_record(held[CONTROL], params, CONTROL) if CONTROL in held else trees.zeros_like(params)
        key_client = jr.fold_in(key_members, member)
        control, found, aux = _local(rule, source, static, server, control, client, key_client, local_lr, options)
        content = {"arrays": to_record(found["direction"])}
        if rule.needs_control:
            content["control_delta"] = to_record(found["control"])
            if trees.all_finite((control, found)):
                context.state[CONTROL] = to_record(control)
        seen = {name: float(value) for name, value in aux.items() if value.ndim == 0}
        return Message(
            RecordDict({**content, "metrics": MetricRecord({"num-examples": count, **seen})}), reply_to=message
        )

    return app


class InProcessGrid(Grid):
    """Nodes that run a ClientApp in this process, one after the other: for tests, and to see an app work.

    >>> grid = InProcessGrid(app, clients=10)                                                  # doctest: +SKIP
    >>> strategy.start(grid, strategy.initial_arrays(), num_rounds=5)                          # doctest: +SKIP

    An exception in the app is raised here. `contexts` are the nodes', by id.
    """

    def __init__(self, app: ClientApp, clients: int):
        # what Flower's own processes say of themselves; messages cannot be made without
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 0, 1, SERVER
        self.app = app
        self.contexts = {
            node: Context(0, node, {"partition-id": index, "num-partitions": clients}, RecordDict(), {})
            for index, node in enumerate(range(SERVER + 1, SERVER + 1 + clients))
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run) -> None:
        raise InputError("an in-process grid belongs to no run of Flower")

    @property
    def run(self):
        raise InputError("an in-process grid belongs to no run of Flower")

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Sequence[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        ids = []
        for message in messages:
            ids.append(f"{len(self._replies)}-{message.metadata.dst_node_id}")
            self._replies[ids[-1]] = self.app(message, self.contexts[message.metadata.dst_node_id])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        return [self._replies.pop(one) for one in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Sequence[Message]:
        return self.pull_messages(self.push_messages(messages))


def to_record(tree: PyTree) -> ArrayRecord:
    """The arrays of a tree by their leaf names."""
    return ArrayRecord({name: Array(np.asarray(leaf)) for name, leaf in trees.leaf_names(tree).items()})


def from_record(record: ArrayRecord, like: PyTree, what: str = "record") -> PyTree:
    """The tree `like` with the arrays of a record.

    Raises:
        InputError: a leaf that is missing or has another shape; it is named.
    """
    found = {}
    for name, leaf in trees.leaf_names(like).items():
        if name not in record:
            raise InputError(f"{what} lacks leaf {name!r}; it has {', '.join(list(record)[:8]) or 'nothing'}")
        array = record[name].numpy()
        if array.shape != leaf.shape:
            raise InputError(f"{what}: leaf {name!r} must have shape {tuple(leaf.shape)}, got {array.shape}")
        found[name] = jnp.asarray(array, leaf.dtype)
    return trees.replace_leaves(like, found)


@eqx.filter_jit
def _local(rule, source, static, server, control, client, key, rate, options):
    return local_round(rule, source, static, server, control, client, key, rate=rate, **options)


@eqx.filter_jit
def _serve(server, messages, delivered, rate, clients, optimizer):
    return serve(server, messages, delivered, rate=rate, clients=clients, optimizer=optimizer)
