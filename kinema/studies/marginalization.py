"""Marginalization models: a lattice learnt from its energy alone, with log Z; marginals of digits in one call."""

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kinema import learn
from kinema.errors import require
from kinema.generate import discrete
from kinema.generate.discrete import Ising, MarginalMLP, MarginalModel
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import LIGHT, MARKERS, SERIES_LIGHT
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.tables import Spread, Table

OURS, PUBLISHED, SITES = "anchored", "reinforce", "independent sites"
PIXELS, TRAINED, PARTS, RATE = 64, 1500, 200, 2e-3
KNOWN = (8, 16, 32, 48, 64)  # pixels of a marginal


class Size(NamedTuple):
    """How much a preset does: lattice, its network (width, depth) and steps; network, steps a stage and orders of
    the digits."""

    shape: tuple[int, int]
    lattice: tuple[int, int]
    lattice_steps: int
    digits: tuple[int, int]
    digits_steps: int
    judged: int
    orders: int


SIZES = {
    "smoke": Size((3, 3), (16, 1), 40, (16, 1), 20, 20, 2),
    "quick": Size((4, 4), (128, 3), 1000, (160, 2), 1600, 297, 5),
    "full": Size((4, 4), (256, 3), 6000, (512, 3), 20_000, 297, 5),
}


@study(
    "marginalization-models",
    "Liu et al., 2024, arXiv 2310.12920",
    "One call gives the probability of any subset of variables, in fair agreement with an any-order model that needs a "
    "call a variable; anchored at the given energy it learns a lattice sooner than by REINFORCE, and returns log Z.",
    title="Marginalization models",
    stage="generate",
)
def run(preset: str, seeds: tuple[int, ...]) -> Evidence:
    size = SIZES[preset]
    truth = Truth.of(Ising(size.shape))
    lattices = {mode: [on_lattice(truth, size, mode, seed) for seed in seeds] for mode in (OURS, PUBLISHED)}
    ours, published = lattices[OURS], lattices[PUBLISHED]
    train, test = binary_digits()
    test = test[: size.judged]
    found = [on_digits(train, test, size, seed) for seed in seeds]
    sites = truth.kl_of_sites()
    return Evidence(
        metrics=[
            Metric(
                "KL to the lattice's law", [one.kl[-1] for one in ours], 0.06, unit="nats", **against(published, "kl")
            ),
            Metric(
                "KL at a quarter of the steps, anchored over REINFORCE",
                [one.kl[0] / other.kl[0] for one, other in zip(ours, published)],
                0.7,
            ),
            Metric(
                "error of log marginals",
                [one.error[-1] for one in ours],
                0.15,
                unit="nats",
                **against(published, "error"),
            ),
            Metric("error of log Z", [abs(one.log_evidence - truth.log_evidence) for one in ours], 0.15, unit="nats"),
            Metric("effective share of samples", [one.effective for one in ours]),
            Metric(
                "correlation of digits' log probability, one call against five orders",
                [one.agreement[-1] for one in found],
                0.85,
                ">=",
                baseline=[one.orders_agree[-1] for one in found],
                against="one order",
            ),
            Metric(
                "the same over one order's, least over sizes of the subset",
                [np.min(np.divide(one.agreement, one.orders_agree)) for one in found],
                0.96,
                ">=",
            ),
            Metric("speed, one call over one order", [one.faster for one in found], 50.0, ">=", unit="x"),
        ],
        figures=[kl_picture(lattices, sites), agreement_picture(found), completion_picture(found[0], test)],
        tables=[lattice_table(lattices, sites), digits_table(found, size)],
        settings={
            "lattice": f"{size.shape} torus, 0.2 a bond, 0.2 a site; log Z {truth.log_evidence:.4f}",
            "lattice networks": f"two perceptrons {size.lattice[0]} x {size.lattice[1]}, {size.lattice_steps} steps",
            "both modes": f"256 chains, 4 variables redrawn a step, Adam {RATE:g} with cosine, the same seeds",
            "KL": "of the law sampled by c, a mean over two orders, by enumeration",
            "log marginals": f"{PARTS} subsets of every size of states of the law, less m of the empty set",
            "digits networks": f"two perceptrons {size.digits[0]} x {size.digits[1]}, {size.digits_steps} steps each",
            "torchgfn": "not compared",
        },
    )


class Truth(eqx.Module):
    """A lattice's law by enumeration, and the subsets whose marginals are judged."""

    law: Ising
    log_p: Float[Array, " states"]
    log_evidence: float
    x: Int[Array, "parts length"]
    masks: Bool[Array, "parts length"]
    log_marginals: Float[Array, " parts"]

    @classmethod
    def of(cls, law: Ising) -> "Truth":
        states = jnp.asarray(discrete.all_states(law.length, 2))
        log_p = jax.vmap(law)(states) - law.log_evidence()
        rng = np.random.default_rng(0)
        x = states[jr.categorical(jr.key(0), log_p, shape=(PARTS,))]
        masks = np.argsort(rng.random((PARTS, law.length)), 1) < rng.integers(1, law.length, (PARTS, 1))
        marginals = jax.lax.map(
            lambda part: discrete.log_marginal_of_table(log_p, states, *part), (x, jnp.asarray(masks))
        )
        return cls(law, log_p, law.log_evidence(), x, jnp.asarray(masks), marginals)

    def kl_of_sites(self) -> float:
        """KL of the product of the sites' own laws."""
        p = np.exp(np.asarray(self.log_p, np.float64))
        states = discrete.all_states(self.law.length, 2)
        up = p @ states / p.sum()
        log_q = np.log(np.where(states == 1, up, 1 - up)).sum(1)
        return float(np.exp(log_q) @ (log_q - self.log_p))


class Lattice(NamedTuple):
    """One run: at `steps`, KL of the sampled law and mean error of log marginals; at the end, what the root says of
    log Z and the effective share of samples."""

    steps: np.ndarray
    kl: np.ndarray
    error: np.ndarray
    log_evidence: float
    effective: float


@eqx.filter_jit
def judge(truth: Truth, model: MarginalModel) -> dict[str, Array]:
    def along(order):
        log_q = discrete.order_table(model, order)
        kl = jnp.exp(log_q) @ (log_q - truth.log_p)
        return kl, 1 / jnp.exp(2 * truth.log_p - log_q).sum()

    kl, effective = jax.lax.map(along, jax.vmap(lambda key: jr.permutation(key, model.length))(jr.split(jr.key(0))))
    m = jax.vmap(model.log_marginal)(truth.x, truth.masks) - model.log_evidence()
    return {"kl": kl.mean(), "effective": effective.mean(), "error": jnp.abs(m - truth.log_marginals).mean()}


def on_lattice(truth: Truth, size: Size, mode: str, seed: int) -> Lattice:
    key_net, key_fit = jr.split(jr.key(seed))
    steps, (width, depth) = size.lattice_steps, size.lattice
    length = truth.law.length
    model = MarginalModel(MarginalMLP(length, 2, width=width, depth=depth, key=key_net), length, 2)
    probe = learn.Probe("judge", lambda model, key: judge(truth, model), every=steps // 4, of="ema")
    made = discrete.fit_energy(
        model,
        truth.law,
        mode=mode,
        optimizer=learn.adam(RATE, steps),
        steps=steps,
        chunk=steps // 20,
        probes=[probe],
        key=key_fit,
    )
    seen = made.history.probes["judge"]
    root = float(made.ema.log_evidence())
    return Lattice(seen.steps, seen.values["kl"], seen.values["error"], root, float(seen.values["effective"][-1]))


def against(runs: list[Lattice], name: str) -> dict[str, Any]:
    return {"baseline": [getattr(one, name)[-1] for one in runs], "against": "REINFORCE"}


class Digits(NamedTuple):
    """Agreement with five orders by size of the subset, of one call and of one other order; test NLL by one order and
    by five, nats; how many times faster one call is; and digits completed from their upper halves."""

    agreement: list[float]
    orders_agree: list[float]
    nll: tuple[float, float]
    faster: float
    completed: np.ndarray


def binary_digits() -> tuple[Int[np.ndarray, "n pixels"], Int[np.ndarray, "m pixels"]]:
    """scikit-learn's digits, a pixel 1 where it is brighter than 7.5 of 16, in a fixed random order."""
    values = require("sklearn.datasets", "digits").load_digits().data
    values = (values > 7.5).astype(np.int32)[np.random.default_rng(0).permutation(len(values))]
    return values[:TRAINED], values[TRAINED:]


def on_digits(train: np.ndarray, test: np.ndarray, size: Size, seed: int) -> Digits:
    key_net, key_fit, key_mask, key_five, key_one, key_draw = jr.split(jr.key(seed), 6)
    (width, depth), steps = size.digits, size.digits_steps
    net = MarginalMLP(PIXELS, 2, width=width, depth=depth, key=key_net)
    model = MarginalModel(net, PIXELS, 2, normalized=True)
    model = discrete.fit_marginals(model, train, optimizer=learn.adam(1e-3, steps), steps=steps, key=key_fit).model
    x = jnp.asarray(test)
    agreement, orders_agree, nll = [], [], []
    for count in KNOWN:
        keys = jr.split(jr.fold_in(key_mask, count), len(x))
        masks = jax.vmap(lambda key, count=count: discrete.known_first(jr.permutation(key, PIXELS), count))(keys)
        m = one_call(model, x, masks)
        five, one = by_order(model, x, masks, size.orders, key_five), by_order(model, x, masks, 1, key_one)
        agreement.append(correlation(m, five))
        orders_agree.append(correlation(one, five))
        nll = [-float(one.mean()), -float(five.mean())]
    all_known = jnp.ones(x.shape, bool)
    slow = seconds(lambda: by_order(model, x, all_known, 1, key_one), 3)
    fast = seconds(lambda: one_call(model, x, all_known), 20)
    return Digits(agreement, orders_agree, (nll[0], nll[1]), slow / fast, np.asarray(complete(model, x[:10], key_draw)))


@eqx.filter_jit
def one_call(model: MarginalModel, x, masks) -> Float[Array, " n"]:
    return jax.vmap(model.log_marginal)(x, masks) - model.log_evidence()


@eqx.filter_jit
def by_order(model: MarginalModel, x, masks, orders: int, key) -> Float[Array, " n"]:
    def one(x, mask, key):
        return discrete.log_prob_by_order(model, x, mask, orders=orders, key=key)

    return jax.vmap(one)(x, masks, jr.split(key, len(x)))


@eqx.filter_jit
def complete(model: MarginalModel, x, key) -> Int[Array, "n draws pixels"]:
    """Four digits for the upper half of each."""
    upper = jnp.arange(PIXELS) < PIXELS // 2

    def draw(x, key):
        return discrete.sample_any_order(model, x, upper, key=key)

    return jax.vmap(lambda x, key: jax.vmap(draw, (None, 0))(x, jr.split(key, 4)))(x, jr.split(key, len(x)))


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def seconds(call, times: int) -> float:
    """The least of several."""
    jax.block_until_ready(call())
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return min(found)


def lattice_table(lattices: dict[str, list[Lattice]], sites: float) -> Table:
    rows = [
        (
            mode,
            *(Spread.of(one.kl[i] for one in runs) for i in (0, -1)),
            Spread.of(one.error[-1] for one in runs),
            Spread.of(one.effective for one in runs),
        )
        for mode, runs in lattices.items()
    ]
    columns = ("mode", "KL at a quarter", "KL", "error of log marginals", "effective share of samples")
    return Table("The lattice learnt from its energy", columns, [*rows, (SITES, None, sites, None, None)])


def digits_table(found: list[Digits], size: Size) -> Table:
    def row(name, columns, nll):
        return (name, *(Spread.of(column) for column in columns), nll and Spread.of(nll))

    rows = [
        row("one call", zip(*(one.agreement for one in found)), None),
        row("one other order", zip(*(one.orders_agree for one in found)), [one.nll[0] for one in found]),
        row(f"{size.orders} orders", [[1.0] for _ in KNOWN], [one.nll[1] for one in found]),
    ]
    columns = ("log marginal by", *(f"{count} known" for count in KNOWN), "negative log-likelihood, nats")
    return Table(f"Digits: correlation with {size.orders} orders, by known pixels", columns, rows)


def kl_picture(lattices: dict[str, list[Lattice]], sites: float) -> Picture:
    names = {OURS: "anchored", PUBLISHED: "REINFORCE"}
    with house(4.8, 3.0) as (_, axes):
        for i, (mode, runs) in enumerate(lattices.items()):
            steps, kl = runs[0].steps, np.array([one.kl for one in runs])
            axes.fill_between(steps, kl.min(0), kl.max(0), color=SERIES_LIGHT[i], alpha=0.15, lw=0)
            axes.plot(steps, kl.mean(0), color=SERIES_LIGHT[i], marker=MARKERS[i], label=names[mode])
        axes.axhline(sites, color=LIGHT["soft"], lw=1.2, ls=(0, (4, 3)), label=SITES)
        axes.set(yscale="log", xlabel="step", ylabel="KL to the law, nats")
        axes.legend()
        figure = axes.figure
    alt = "Kullback-Leibler divergence of the sampled law to the lattice's law against training steps, by mode"
    return Picture("lattice", figure, alt, "Mean over seeds and range; equal networks, chains, rates and steps.")


def agreement_picture(found: list[Digits]) -> Picture:
    with house(4.8, 2.8) as (figure, axes):
        for i, (name, field) in enumerate((("one call", "agreement"), ("one order", "orders_agree"))):
            values = np.array([getattr(one, field) for one in found])
            axes.fill_between(KNOWN, values.min(0), values.max(0), color=SERIES_LIGHT[i], alpha=0.15, lw=0)
            axes.plot(KNOWN, values.mean(0), color=SERIES_LIGHT[i], marker=MARKERS[i], label=name)
        axes.set(xlabel="known pixels", ylabel="correlation with five orders", xticks=KNOWN)
        axes.legend()
    alt = "Correlation of log marginals of digits with the mean of five orders, against the number of known pixels"
    return Picture("agreement", figure, alt, "One call against as many calls as known pixels.")


def completion_picture(found: Digits, test: np.ndarray) -> Picture:
    truth = test[: len(found.completed), None]
    half = np.where(np.arange(PIXELS) < PIXELS // 2, truth, 0.5)
    rows = np.concatenate([truth, half, found.completed], 1).reshape(len(truth), -1, 8, 8)
    framed = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.25)
    sheet = framed.transpose(1, 2, 0, 3).reshape(10 * rows.shape[1], -1)
    with house(4.8, 0.48 * rows.shape[1]) as (figure, axes):
        axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
    alt = "Held-out digits, their upper halves, and four completions of each half"
    return Picture("completions", figure, alt, "Truth, what was given, four samples of the rest, in random orders.")
