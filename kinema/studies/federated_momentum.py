"""Momentum in federated learning: where each rule ends, what it is worth on digits, Flower beside the simulation."""

import importlib.util
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.learn.federated import ALL_RULES, fedavg_m, scaffold_m_vr, simulate
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies import federated_momentum_bowls as bowls
from kinema.studies import federated_momentum_digits as digits
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table


class Size(NamedTuple):
    """`ends`: rounds to the fixed points; `rounds` on digits, `pilots` the seeds that settings are chosen on among
    `local_rates`, `repeats` runs a seed; `noisy`: runs and rounds of a floor, None for no floors; `takers`: how many of
    ten clients take part; `controls`: rules with control variates, without, or both."""

    ends: int
    rounds: int
    local_rates: tuple[float, ...]
    pilots: tuple[int, ...]
    repeats: int
    noisy: tuple[int, int] | None
    takers: tuple[int, ...]
    controls: tuple[bool, ...] = (False, True)


SIZES = {
    "smoke": Size(600, 10, (0.2,), (100,), 1, None, (3,), (True,)),
    "quick": Size(1500, 80, digits.LOCAL_RATES, tuple(range(100, 116)), 3, (8, 300), (3,)),
    "full": Size(1500, 80, digits.LOCAL_RATES, tuple(range(100, 132)), 10, (64, 300), (3, 10)),
}
NAMES = {name: make().name for name, make in ALL_RULES.items()}
REACH = {"fedavg": 0.89, "fedavg-m": 0.91, "scaffold": 0.97, "scaffold-m": 0.978}
AHEAD = {("fedavg-m", "fedavg"): 1.5, ("scaffold", "fedavg-m"): 0.0, ("scaffold-m", "scaffold"): 0.5}


@study(
    "federated-momentum",
    "Cheng et al., 2024, arXiv 2306.16504",
    "With one class a client and 3 of 10 clients a round, momentum in the local steps lifts FedAvg by 1.5 points and "
    "SCAFFOLD by half a point at equal tuning; every rule ends where its closed form says.",
    title="Momentum in federated learning",
    stage="learn",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    makes = [make for make in bowls.KINDS if make().needs_control in size.controls]
    ends = [bowls.fixed_points(seed, size.ends, makes) for seed in seeds]
    floors = [bowls.floors(seed, *size.noisy) for seed in seeds] if size.noisy else []
    task = digits.problem()
    settings = digits.grid(size.local_rates)
    options = size.rounds, settings, size.pilots, seeds, size.repeats, task
    found = {
        some: {name: one for kind in size.controls for name, one in digits.tuned(kind, some, *options).items()}
        for some in size.takers
    }
    scores = {name: by_seed(one.curves.accuracy) for name, one in found[3].items()}
    apart = [max(gap for gap, _ in one.values()) for one in ends]
    metrics = [
        Metric("distance to the closed fixed points, worst rule", apart, 1e-12),
        *(
            Metric(f"accuracy, {NAMES[name]}", scores[name], target, ">=")
            for name, target in REACH.items()
            if name in scores
        ),
        *(
            Metric(f"{NAMES[a]} over {NAMES[b]}, points", 100 * (scores[a] - scores[b]), target, ">=")
            for (a, b), target in AHEAD.items()
            if {a, b} <= scores.keys()
        ),
    ]
    if "scaffold-m" in scores:
        losses = {name: by_seed(found[3][name].curves.loss) for name in ("scaffold-m", "scaffold")}
        metrics.append(
            Metric("training loss, SCAFFOLD-M", losses["scaffold-m"], baseline=losses["scaffold"], against="SCAFFOLD")
        )
    if floors:
        least, base = ([one[name].min() for one in floors] for name in ("fedavg-m-vr", "fedavg-m"))
        metrics.append(Metric("floor of FedAvg-M-VR over that of FedAvg-M", np.divide(least, base), 0.5, unit="x"))
    flower = importlib.util.find_spec("flwr") is not None
    if flower:
        metrics.append(
            Metric("Flower and simulation apart, worst of two rules", [beside_flower(seed) for seed in seeds], 0.01)
        )
    return Evidence(
        metrics=metrics,
        figures=[learning(found[3]), *([noise(floors)] if floors else [])],
        tables=[
            *(table(some, found[some]) for some in size.takers),
            *(server_steps(some, found[some], settings) for some in size.takers),
            endings(ends),
        ],
        settings={
            "digits": "10 clients of one class each, perceptron 64-64-10, 16 local steps on 20 digits, "
            f"{size.rounds} rounds, beta {digits.BETA}; means over the last {digits.LAST} rounds",
            "tuning": f"least training loss among local rates {size.local_rates} and server rates "
            f"{digits.SERVER_STEPS} of local rate x steps, the same for all: of {digits.FIRST} pilots, and for "
            f"the best {digits.FINALISTS} of {len(size.pilots)} (seeds from {size.pilots[0]}); then "
            f"{size.repeats} runs each",
            "noisy quadratics": f"10 clients, 20 dimensions, noise {bowls.NOISE}, beta {bowls.NOISE_BETA}; the least "
            f"floor over (local, server) rates {bowls.NOISE_RATES}",
            "Flower": "compared" if flower else "not installed, so not compared here",
        },
    )


def by_seed(values: np.ndarray) -> np.ndarray:
    """Mean over runs and the last rounds, one a seed."""
    return digits.last(values).mean(1)


def beside_flower(seed: int, rounds: int = 3) -> float:
    """The largest difference of a number in the model, over the largest number, between Flower and `simulate`.

    The two rules between them need all that is sent.
    """
    from kinema.interop.flower import FederatedStrategy, InProcessGrid, client_app

    logging.getLogger("flwr").setLevel(logging.WARNING)

    random = np.random.default_rng(seed)
    x, noise = random.normal(size=(6, 8, 3)).astype(np.float32), random.normal(size=(6, 8)).astype(np.float32)
    rows = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32) + noise}
    worst, model = 0.0, jnp.zeros(3)
    for make in (fedavg_m, scaffold_m_vr):
        same = {"local_steps": 3, "local_lr": 0.05, "key": jr.key(seed)}
        chosen = {"server_lr": 0.3, "clients_per_round": 3}
        ours = simulate(make(), _square, model, rows, rounds=rounds, batch_size=4, **same, **chosen, progress=False)

        def own(context):
            return jax.tree.map(lambda leaf: leaf[int(context.node_config["partition-id"])], rows)

        strategy = FederatedStrategy(make(), model, clients=6, **same, **chosen)
        grid = InProcessGrid(client_app(make(), _square, model, own, batch_size=4, **same), 6)
        theirs = strategy.model(strategy.start(grid, strategy.initial_arrays(), num_rounds=rounds).arrays)
        worst = max(worst, float(jnp.abs(ours.model - theirs).max() / jnp.abs(ours.model).max()))
    return worst


def _square(w, batch, key):
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2), {}


def table(some: int, found: dict[str, digits.Tuned]) -> Table:
    rows = [
        [
            NAMES[name],
            "{:g}, {:g}".format(*one.rates),
            Spread.of(by_seed(one.curves.loss)),
            Spread.of(by_seed(one.curves.accuracy)),
        ]
        for name, one in found.items()
    ]
    return Table(
        f"Digits, {some} of 10 clients a round", ["rule", "local, server rate", "training loss", "accuracy"], rows
    )


def server_steps(some: int, found: dict[str, digits.Tuned], settings: np.ndarray) -> Table:
    """What the pilots saw: the local rate of least loss for every rule and server step."""
    rows = []
    for name, one in found.items():
        for server in digits.SERVER_STEPS:
            own = np.flatnonzero(np.isclose(settings[:, 1], server * digits.LOCAL_STEPS * settings[:, 0]))
            best = own[np.nanmean(one.pilots.loss[own], 1).argmin()]
            ends = [end[best][~np.isnan(end[best])] for end in one.pilots]
            rows.append([NAMES[name], server, f"{settings[best, 0]:g}", len(ends[0]), *map(Spread.of, ends)])
    columns = ["rule", "server rate / local rate x steps", "local rate", "pilots", "training loss", "accuracy"]
    return Table(f"Pilots by server step, {some} of 10 clients a round", columns, rows)


def endings(ends: list[dict]) -> Table:
    rows = [[NAMES[name], *(Spread.of([one[name][i] for one in ends]) for i in (1, 0))] for name in ends[0]]
    return Table("Quadratic clients without noise", ["rule", "bias", "distance to the closed form"], rows)


def learning(found: dict) -> Picture:
    with house(5.4, 3.2) as (figure, axes):
        for name, one in found.items():
            accuracy = one.curves.accuracy.reshape(-1, one.curves.accuracy.shape[-1])
            rounds = np.arange(1, accuracy.shape[1] + 1)
            (line,) = axes.plot(rounds, accuracy.mean(0), label=NAMES[name])
            low, high = np.percentile(accuracy, [25, 75], axis=0)
            axes.fill_between(rounds, low, high, color=line.get_color(), alpha=0.2, lw=0)
        axes.set(xlabel="round", ylabel="accuracy on the test", ylim=(0, 1))
        axes.legend(loc="lower right")
    return Picture(
        "digits",
        figure,
        "Accuracy on digits by round for FedAvg, FedAvg-M, SCAFFOLD and SCAFFOLD-M, 3 of 10 clients",
        "3 of 10 clients a round, one class each. Means, and quartiles over runs.",
    )


def noise(floors: list[dict]) -> Picture:
    with house(4.6, 3.0) as (figure, axes):
        local = bowls.NOISE_RATES[0][0]
        rates = np.array([server for one, server in bowls.NOISE_RATES if one == local])
        for name in floors[0]:
            axes.plot(rates, np.mean([one[name][: len(rates)] for one in floors], 0), "o-", label=NAMES[name])
        axes.set(xscale="log", yscale="log", xlabel="server rate", ylabel="squared gradient in the last rounds")
        axes.legend()
    return Picture(
        "floor",
        figure,
        "Floor of the squared gradient against the server's rate for FedAvg, FedAvg-M and FedAvg-M-VR",
        "Noisy quadratics that hardly differ: what noise leaves of the gradient.",
    )
