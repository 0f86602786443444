"""The rules as Flower apps, in this process: what they send, keep and refuse, and the numbers of the simulation."""

import os

import numpy as np
import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
flwr = pytest.importorskip("flwr", reason="Flower is not installed")

import jax
import jax.numpy as jnp
import jax.random as jr
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from kinema.errors import InputError
from kinema.interop.flower import CONTROL, FederatedStrategy, InProcessGrid, client_app, from_record, to_record
from kinema.learn.federated import ALL_RULES, divide, fedavg, scaffold, scaffold_m, simulate

SAME = {"local_steps": 3, "local_lr": 0.05, "key": jr.key(4)}
DRAW = {"server_lr": 0.3, "clients_per_round": 3}
PARTS = [np.arange(9), np.arange(9, 21), np.arange(21, 24), np.arange(24, 40), np.arange(40, 55)]
MODEL = {"w": jnp.zeros(3), "b": jnp.zeros(())}
ROUNDS = 5


def lines(model, batch, key):
    noise = 0.01 * jr.normal(key) * jnp.sum(model["w"])
    return jnp.mean((batch["x"] @ model["w"] + model["b"] - batch["y"]) ** 2) + noise, {}


def rows():
    random = np.random.default_rng(1)
    x = random.normal(size=(55, 3)).astype(np.float32)
    return {"x": x, "y": (x @ np.array([1.0, -2.0, 0.5]) + random.normal(size=55)).astype(np.float32)}


def own(context):
    return {name: leaf[PARTS[context.node_config["partition-id"]]] for name, leaf in rows().items()}


def strategy(rule, model=MODEL, **options):
    return FederatedStrategy(rule, model, **({"clients": 5} | SAME | DRAW | options))


def grid(rule, data=own):
    return InProcessGrid(client_app(rule, lines, MODEL, data, batch_size=4, **SAME), 5)


@pytest.mark.parametrize("name", ["fedavg-m", "scaffold", "scaffold-m-vr"])  # all that is sent, in every mixture
def test_flower_makes_the_numbers_of_the_simulation(name):
    """Clients of unequal size, three of five a round."""
    rule = ALL_RULES[name]()
    ours = simulate(rule, lines, MODEL, divide(rows(), PARTS), rounds=ROUNDS, batch_size=4, **SAME, **DRAW)
    nodes, server = grid(rule), strategy(rule)
    result = server.start(nodes, server.initial_arrays(), num_rounds=ROUNDS)
    theirs = server.model(result.arrays)
    for leaf in MODEL:
        np.testing.assert_allclose(theirs[leaf], ours.model[leaf], atol=1e-6)
    assert len(result.train_metrics_clientapp) == ROUNDS
    held = [context.state.array_records for context in nodes.contexts.values()]
    if rule.needs_control:
        kept = [from_record(one[CONTROL], MODEL)["w"] if CONTROL in one else jnp.zeros(3) for one in held]
        np.testing.assert_allclose(jnp.stack(kept), ours.controls["w"], atol=1e-6)
    else:
        assert not any(held)


def test_the_shared_record_holds_nothing_of_a_client():
    rule, sent = scaffold_m(), set()

    class Watched(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            if messages:
                assert len({id(message.content) for message in messages}) == 1
                sent.update(messages[0].content.array_records)
            return super().push_messages(messages)

    app = client_app(rule, lines, MODEL, own, batch_size=4, **SAME)
    server = strategy(rule)
    server.start(Watched(app, 5), server.initial_arrays(), num_rounds=1)
    assert sent == {"arrays", "momentum", "control"}


def test_a_reply_that_is_not_finite_is_dropped_and_counted():
    def sick(context):
        data = own(context)
        return {**data, "y": data["y"] * np.inf} if context.node_config["partition-id"] == 2 else data

    rule = scaffold()
    nodes, server = grid(rule, sick), strategy(rule, clients_per_round=5)
    with pytest.warns(UserWarning, match="is not finite; dropped"):
        result = server.start(nodes, server.initial_arrays(), num_rounds=2)
    node = list(nodes.contexts)[2]
    assert dict(server.lost) == {node: 2}
    assert np.isfinite(server.model(result.arrays)["w"]).all() and CONTROL not in nodes.contexts[node].state


def test_a_server_that_was_stopped_goes_on(tmp_path):
    rule = scaffold_m()
    whole, nodes = strategy(rule), grid(rule)
    expected = whole.start(nodes, whole.initial_arrays(), num_rounds=4).arrays
    first, nodes = strategy(rule, folder=tmp_path), grid(rule)
    first.start(nodes, first.initial_arrays(), num_rounds=2)
    with pytest.raises(InputError, match="already holds a run"):
        strategy(rule, folder=tmp_path)
    with pytest.raises(InputError, match="holds a run of SCAFFOLD-M, not of FedAvg"):
        strategy(fedavg(), folder=tmp_path, resume=True)
    second = strategy(rule, folder=tmp_path, resume=True)
    found = second.start(nodes, second.initial_arrays(), num_rounds=2).arrays
    assert np.array_equal(found["w"].numpy(), expected["w"].numpy())


def test_replies_that_lack_something_are_refused():
    rule = scaffold()
    nodes, server = grid(rule), strategy(rule)
    (message, *_) = server.configure_train(1, server.initial_arrays(), {}, nodes)

    def reply(**records):
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({**records, "metrics": metrics}), reply_to=message)

    node = message.metadata.dst_node_id
    arrays, wrong = to_record(MODEL), to_record({"w": jnp.zeros(4), "b": jnp.zeros(())})
    with pytest.raises(InputError, match=f"reply of node {node} has no 'control_delta', which SCAFFOLD needs"):
        server.aggregate_train(1, [reply(arrays=arrays)])
    with pytest.raises(InputError, match=rf"'arrays' of node {node}: leaf 'w' must have shape \(3,\), got \(4,\)"):
        server.aggregate_train(1, [reply(arrays=wrong, control_delta=arrays)])
    with pytest.raises(InputError, match="'arrays' of node 2 lacks leaf 'b'; it has nothing"):
        server.aggregate_train(1, [reply(arrays=ArrayRecord(), control_delta=arrays)])
    assert server.aggregate_train(1, []) == (None, None)


def test_a_client_without_data():
    nodes, server = grid(fedavg(), lambda context: {"x": np.zeros((0, 3)), "y": np.zeros(0)}), strategy(fedavg())
    with pytest.raises(Exception, match="rows of a client are none"):
        server.start(nodes, server.initial_arrays(), num_rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients_per_round": 6}, r"clients_per_round must be in 1\.\.5"),
        ({"local_lr": 0.0}, "local_lr must be positive"),
        ({"model": {"w": jnp.zeros(3, int)}}, "model leaf w is int32"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        strategy(fedavg(), **options)


def test_records_are_trees():
    tree = {"w": jnp.arange(3.0), "deep": [jnp.ones((2, 2))]}
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), from_record(to_record(tree), tree), tree))
