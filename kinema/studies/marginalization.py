"""Marginalization models: a lattice and strings learnt from their energy alone, with log Z; digits in one call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kinema.generate.discrete import Ising, Strings
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.marginalization_digits import Digits, binary_digits, on_digits
from kinema.studies.marginalization_energies import (
    PARTS,
    RATE,
    Autoregressive,
    Lattice,
    Training,
    Truth,
    Written,
    on_lattice,
    on_lattice_by_order,
    on_strings,
)
from kinema.studies.marginalization_pictures import (
    agreement_picture,
    completion_picture,
    digits_table,
    lattice_picture,
    lattice_table,
    strings_picture,
    strings_table,
)
from kinema.studies.study import study

OURS, PUBLISHED = "anchored", "reinforce"
BLOCK = 4  # variables redrawn a step
GRADIENT = 3  # calls that a call with its gradient costs


class Size(NamedTuple):
    """How much a preset does: lattice and length of strings, and how each is learnt; network, steps a stage, judged
    digits and orders of the digits."""

    shape: tuple[int, int]
    length: int
    lattice: Training
    strings: Training
    digits: tuple[int, int]
    digits_steps: int
    judged: int
    orders: int


SIZES = {
    "smoke": Size((3, 3), 6, Training((16, 1), 32, 40), Training((16, 1), 32, 20), (16, 1), 20, 20, 1),
    "quick": Size((4, 4), 10, Training((128, 2), 128, 500), Training((128, 2), 160, 800), (160, 2), 1000, 297, 5),
    "full": Size((4, 4), 16, Training((256, 3), 256, 6000), Training((256, 3), 256, 6000), (512, 3), 20_000, 297, 5),
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
    truth, words = Truth.of(Ising(size.shape)), Strings(size.length)
    cost = cost_of_order(truth.law.length)
    fewer = size.lattice._replace(steps=round(size.lattice.steps / cost))
    lattices = {mode: [on_lattice(truth, size.lattice, mode, seed) for seed in seeds] for mode in (OURS, PUBLISHED)}
    by_order = [on_lattice_by_order(truth, fewer, seed) for seed in seeds]
    written = [on_strings(words, size.strings, seed) for seed in seeds]
    train, test = binary_digits()
    test = test[: size.judged]
    found = [on_digits(train, test, size.digits, size.digits_steps, size.orders, seed) for seed in seeds]
    sites = truth.kl_of_sites()
    return Evidence(
        metrics=[
            *of_lattice(truth, lattices[OURS], lattices[PUBLISHED], by_order),
            *of_strings(written),
            *of_digits(found),
        ],
        figures=[
            lattice_picture(lattices, by_order, sites, cost),
            agreement_picture(found),
            completion_picture(found[0], test),
            strings_picture(words, written),
        ],
        tables=[
            lattice_table(lattices, by_order, sites),
            digits_table(found, size.orders),
            strings_table(words, written),
        ],
        settings={
            "lattice": f"{size.shape} torus, 0.2 a bond, 0.2 a site; log Z {truth.log_evidence:.4f}",
            "strings": f"{size.length} of CNO(), values 1, -1, -2, target 4; log Z {words.log_evidence():.4f}",
            "learnt by": {name: one._asdict() for name, one in (("lattice", size.lattice), ("strings", size.strings))},
            "both modes": f"the same chains, {BLOCK} variables redrawn a step, Adam {RATE:g} with cosine, same seeds",
            "any-order autoregressive": f"c alone by REINFORCE on the energy; one step costs {cost:.1f} of ours",
            "KL": "of the law sampled by c, a mean over two orders, by enumeration",
            "log marginals": f"{PARTS} subsets of every size of states of the law, less m of the empty set",
            "digits networks": f"two perceptrons {size.digits[0]} x {size.digits[1]}, {size.digits_steps} steps each",
        },
    )


def cost_of_order(length: int) -> float:
    """Calls of a step of the autoregressive model over those of a step of ours, which sees two equations."""
    return (length + GRADIENT * length) / (BLOCK + GRADIENT * (3 + 2))


def of_lattice(
    truth: Truth, ours: Sequence[Lattice], published: Sequence[Lattice], by_order: Sequence[Autoregressive]
) -> list[Metric]:
    def against(name: str) -> dict[str, Any]:
        return {"baseline": [getattr(one, name)[-1] for one in published], "against": "REINFORCE"}

    return [
        Metric("KL to the lattice's law", [one.kl[-1] for one in ours], 0.06, unit="nats", **against("kl")),
        Metric(
            "KL at a quarter of the steps, anchored over REINFORCE",
            [one.kl[0] / other.kl[0] for one, other in zip(ours, published)],
            0.7,
        ),
        Metric(
            "KL over that of an any-order autoregressive model of equal cost",
            [one.kl[-1] / other.kl[-1] for one, other in zip(ours, by_order)],
        ),
        Metric("error of log marginals", [one.error[-1] for one in ours], 0.15, unit="nats", **against("error")),
        Metric("error of log Z", [abs(one.log_evidence - truth.log_evidence) for one in ours], 0.15, unit="nats"),
        Metric("effective share of samples", [one.effective for one in ours]),
    ]


def of_strings(written: Sequence[Written]) -> list[Metric]:
    return [
        Metric("error of log Z, strings", [abs(one.log_evidence_error) for one in written], 0.15, unit="nats"),
        Metric("total variation of value and brackets, strings", [one.variation for one in written]),
    ]


def of_digits(found: Sequence[Digits]) -> list[Metric]:
    return [
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
    ]
