"""Pictures and tables of the study of marginalization models."""

from collections.abc import Mapping, Sequence

import numpy as np

from kinema.generate.discrete import Strings
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import LIGHT, MARKERS, SERIES_LIGHT
from kinema.studies.marginalization_digits import KNOWN, PIXELS, Digits
from kinema.studies.marginalization_energies import Autoregressive, Lattice, Written
from kinema.tables import Spread, Table

SITES, BY_ORDER = "independent sites", "any-order autoregressive"


def lattice_table(lattices: Mapping[str, Sequence[Lattice]], by_order: Sequence[Autoregressive], sites: float) -> Table:
    rows = [
        (
            mode,
            *(Spread.of(one.kl[i] for one in runs) for i in (0, -1)),
            Spread.of(one.error[-1] for one in runs),
            Spread.of(one.effective for one in runs),
        )
        for mode, runs in lattices.items()
    ]
    rows += [
        (BY_ORDER, *(Spread.of(one.kl[i] for one in by_order) for i in (0, -1)), None, None),
        (SITES, None, sites, None, None),
    ]
    columns = ("trained by", "KL at a quarter", "KL", "error of log marginals", "effective share of samples")
    return Table("The lattice learnt from its energy, at equal cost", columns, rows)


def digits_table(found: Sequence[Digits], orders: int) -> Table:
    def row(name, columns, nll):
        return (name, *(Spread.of(column) for column in columns), nll and Spread.of(nll))

    rows = [
        row("one call", zip(*(one.agreement for one in found)), None),
        row("one other order", zip(*(one.orders_agree for one in found)), [one.nll[0] for one in found]),
        row(f"{orders} orders", [[1.0] for _ in KNOWN], [one.nll[1] for one in found]),
    ]
    columns = ("log marginal by", *(f"{count} known" for count in KNOWN), "negative log-likelihood, nats")
    return Table(f"Digits: correlation with {orders} orders, by known pixels", columns, rows)


def strings_table(law: Strings, found: Sequence[Written]) -> Table:
    exact = law.law()
    rows = [
        ("exact", law.log_evidence(), float(exact[:, 0].sum()), 0.0, ""),
        *(
            (
                f"seed {i}",
                law.log_evidence() + one.log_evidence_error,
                one.closed,
                one.variation,
                "  ".join(one.examples[:3]),
            )
            for i, one in enumerate(found)
        ),
    ]
    columns = ("strings", "log Z", "share with all brackets closed", "total variation", "first drawn")
    return Table("Strings learnt from their energy", columns, rows)


def lattice_picture(
    lattices: Mapping[str, Sequence[Lattice]], by_order: Sequence[Autoregressive], sites: float, cost: float
) -> Picture:
    """KL against training; a step of the autoregressive model counts `cost` steps."""
    runs = [(name, rows[0].steps, rows) for name, rows in lattices.items()]
    runs = [*runs, (BY_ORDER, cost * by_order[0].steps, by_order)]
    with house(4.8, 3.3) as (figure, axes):
        for i, (name, steps, rows) in enumerate(runs):
            kl = np.array([one.kl for one in rows])
            axes.fill_between(steps, kl.min(0), kl.max(0), color=SERIES_LIGHT[i], alpha=0.15, lw=0)
            axes.plot(steps, kl.mean(0), color=SERIES_LIGHT[i], marker=MARKERS[i], label=name)
        axes.axhline(sites, color=LIGHT["soft"], lw=1.2, ls=(0, (4, 3)), label=SITES)
        axes.set(yscale="log", xlabel="steps, or their cost in network calls", ylabel="KL to the law, nats")
        axes.yaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside upper center", ncols=2)
    alt = "Kullback-Leibler divergence of the sampled law to the lattice's law against training, by method"
    return Picture("lattice", figure, alt, "Mean over seeds and range; equal networks, batches, rates and calls.")


def agreement_picture(found: Sequence[Digits]) -> Picture:
    """Log probabilities of digits by both, and their correlation by size of the subset."""
    with house(6.4, 3.0, ncols=2) as (figure, (left, right)):
        m, many = found[0].log_probs
        ends = [min(m.min(), many.min()) - 1, max(m.max(), many.max()) + 1]
        left.plot(ends, ends, color=LIGHT["soft"], lw=1.2, ls=(0, (4, 3)), zorder=0)
        left.plot(many, m, ls="", marker="o", ms=3, mec="none", alpha=0.6, color=SERIES_LIGHT[0])
        left.set(xlabel="log p by 5 x 64 calls, nats", ylabel="log p by one call, nats", aspect="equal")
        for i, (name, field) in enumerate((("one call", "agreement"), ("one order", "orders_agree"))):
            values = np.array([getattr(one, field) for one in found])
            right.fill_between(KNOWN, values.min(0), values.max(0), color=SERIES_LIGHT[i], alpha=0.15, lw=0)
            right.plot(KNOWN, values.mean(0), color=SERIES_LIGHT[i], marker=MARKERS[i], label=name)
        right.set(xlabel="known pixels", ylabel="correlation with five orders", xticks=KNOWN, ylim=(None, 1))
        right.legend()
    alt = "Log probability of held-out digits by one call against that of five orders; correlation by known pixels"
    return Picture(
        "agreement", figure, alt, "Left: 64 known, first seed. Right: as many calls an order as known pixels."
    )


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


def strings_picture(law: Strings, found: Sequence[Written]) -> Picture:
    """The law of the value, exact and sampled."""
    values, exact = law.counts()[0], law.law().sum(1)
    counts = np.array([[np.mean(one.values == value) for value in values] for one in found])
    shown = exact > 1e-3
    with house(4.8, 2.6) as (figure, axes):
        axes.bar(values[shown], exact[shown], color=LIGHT["line"], label="exact, by counting")
        axes.errorbar(
            values[shown],
            counts.mean(0)[shown],
            np.stack([counts.mean(0) - counts.min(0), counts.max(0) - counts.mean(0)])[:, shown],
            ls="",
            marker=MARKERS[0],
            color=SERIES_LIGHT[0],
            label="sampled",
        )
        text = "\n".join(found[0].examples[:5])
        axes.text(0.02, 0.95, text, transform=axes.transAxes, va="top", family="monospace", size=9)
        axes.set(xlabel="value of the string", ylabel="probability")
        axes.legend(loc="center left")
    alt = "Probability of each value of a string, exact and of samples, and five strings drawn"
    return Picture("strings", figure, alt, "Mean over seeds and range; strings of the first seed.")
