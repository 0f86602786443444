"""A federated round of ten clients beside Flower: FedAvg on digits, the same local steps compiled by JAX on both sides.

Flower's FedAvg runs over its simulation engine (Ray), as its users have it; and with its
clients called one after the other in this process, which leaves only its records and our local steps: the least that
Flower can take. The models must agree first. Rounds by Ray are timed after the first three, which compile.
"""

import functools
import os
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.harness import Row, compare, line
from kinema.interop.flower import InProcessGrid, from_record, to_record
from kinema.learn.federated import Clients, Federated, begin_server, fedavg, local_round, stacked
from kinema.learn.federated.simulation import client_keys
from kinema.learn.population import Population, scan_rounds
from kinema.motion import trees
from kinema.studies import federated_momentum_digits as digits

CLIENTS, ROWS, STEPS, BATCH, RATE, ROUNDS, TARGET = 10, 140, 16, 20, 0.2, 5, 20
WARM, TIMED = 3, 6  # rounds by Ray
STATIC = eqx.partition(digits.network(jr.key(0)), eqx.is_inexact_array)[1]
MODEL = eqx.partition(digits.network(jr.key(0)), eqx.is_inexact_array)[0]
KEY = jr.key(1)
APP = ClientApp()  # here, so that the engine sends it by name: else it would be compiled for every message


def run(seconds: float = 3.0) -> list[Row]:
    rounds = ours()
    row = compare(
        f"{ROUNDS} rounds of {CLIENTS} clients, one process",
        "flower",
        rounds,
        in_process(),
        target=1,
        seconds=seconds,
        least=5,
    )
    return [row, by_engine(rounds)]


@functools.cache  # in each process of the engine once
def clients() -> Clients:
    task = digits.problem()
    x, y = (leaf[: CLIENTS * ROWS] for leaf in task.train)
    return stacked({"x": x.reshape(CLIENTS, ROWS, -1), "y": y.reshape(CLIENTS, ROWS)})


def ours():
    data, rule = clients(), Federated(fedavg(), digits.SOURCE, CLIENTS, STEPS, RATE, RATE * STEPS, BATCH, STATIC)
    keys = jax.vmap(lambda index: jr.fold_in(client_keys(KEY)[0], index))(jnp.arange(CLIENTS))
    server, members = rule.begin(MODEL)
    state = Population(server, members, jnp.zeros((), jnp.int32))
    go = eqx.filter_jit(lambda state: scan_rounds(state, data, keys, KEY, rule=rule, rounds=ROUNDS)[0])
    return lambda: flat(go(state).server.model)


def in_process():
    grid, strategy = InProcessGrid(APP, CLIENTS), quiet(FedAvg)
    return lambda: flat(from_record(strategy.start(grid, to_record(MODEL), num_rounds=ROUNDS).arrays, MODEL))


def by_engine(rounds) -> Row:
    from flwr.simulation import run_simulation

    seen, ends = {}, []

    class Timed(FedAvg):
        def aggregate_train(self, server_round, replies):
            found = super().aggregate_train(server_round, list(replies))
            ends.append((time.perf_counter(), time.process_time()))
            if server_round == ROUNDS:
                seen["model"] = flat(from_record(found[0], MODEL))
            return found

    server = ServerApp()

    @server.main()
    def main(grid, context: Context) -> None:
        quiet(Timed).start(grid, to_record(MODEL), num_rounds=WARM + TIMED)

    began = time.perf_counter()
    run_simulation(server, APP, CLIENTS, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    model, mine = rounds(), []
    for _ in range(15):
        start = time.perf_counter()
        rounds()
        mine.append((time.perf_counter() - start) / ROUNDS)
    theirs = np.diff([wall for wall, _ in ends])[WARM - 1 :]
    difference = float(np.abs(model - seen["model"]).max() / np.abs(model).max())
    if difference > 1e-4:
        raise AssertionError(f"Kinema and Flower differ by {difference:.2g}")
    low, ratio, high = (float(v) for v in np.percentile(theirs / np.median(mine), [25, 50, 75]))
    row = Row(
        f"a round of {CLIENTS} clients, Ray",
        "flower",
        difference,
        1e3 * float(np.median(mine)),
        1e3 * float(np.median(theirs)),
        ratio,
        low,
        high,
        float("nan"),  # the clients' processor time is spent in other processes
        len(theirs),
        ends[0][0] - began,
        TARGET,
    )
    print(line(row), flush=True)
    return row


@APP.train()
def train(message: Message, context: Context) -> Message:
    """A plain Flower client: arrays in, trained arrays out."""
    member = int(context.node_config["partition-id"])
    model = from_record(message.content["arrays"], MODEL)
    own = jax.tree.map(lambda x: x[member], clients())
    round = int(message.content["config"]["server-round"]) - 1
    trained = local(model, own, jr.fold_in(client_keys(KEY)[0], member), jnp.asarray(round, jnp.int32))
    metrics = MetricRecord({"num-examples": ROWS})
    return Message(RecordDict({"arrays": to_record(trained), "metrics": metrics}), reply_to=message)


@jax.jit
def local(model, data: Clients, key, round):
    server = eqx.tree_at(lambda s: s.round, begin_server(model), round)
    options = {"steps": STEPS, "rate": RATE, "batch_size": BATCH}
    message = local_round(fedavg(), digits.SOURCE, STATIC, server, (), data, key, **options)[1]
    return trees.add_scaled(model, -RATE * STEPS, message["direction"])


def quiet(kind: type[FedAvg]) -> FedAvg:
    import logging

    logging.getLogger("flwr").setLevel(logging.ERROR)
    return kind(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)


def flat(model) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(model)])
