"""Pictures, tables and the page of the main job."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinema.report import Page
from kinema.report.animation import Animation, animate
from kinema.report.charts import error_against_nfe, law_bars, training_curve
from kinema.report.picture import Picture
from kinema.studies import provenance
from kinema.studies.collisions_job import EVALUATIONS, LAWS, Measured
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.pages import metric_table
from kinema.tables import Spread, Table
from kinema.verify.table import law_table

SHOWN = (*LAWS, "speed", "hits", "pairs", "distance")


def figures(results: Sequence[Measured]) -> list[Picture]:
    """Training curve, error against evaluations, law errors, and what restoring gains."""
    losses = np.stack([one.run.history.metrics["loss"] for one in results])
    steps = np.arange(1, losses.shape[1] + 1)
    counts = tuple(results[0].by_count)
    by_count = {
        law: (np.array(counts), np.array([[one.by_count[c][law] for c in counts] for one in results]))
        for law in ("replay", "kinematic", "momentum")
    }
    bars = {
        name: {law: [one.errors[name].means()[law] for one in results] for law in LAWS} for name in results[0].motions
    }
    return [
        Picture("learning", training_curve({"loss": (steps, losses)}), "Training loss falling against steps"),
        Picture(
            "evaluations",
            error_against_nfe(by_count, ylabel="law error"),
            "Law errors falling with network evaluations and levelling off",
            "More evaluations help little after a dozen: what is left is what the network has not learnt.",
        ),
        Picture(
            "laws",
            law_bars(bars),
            "Law errors of true, generated and steered motion",
            "True and projected motion obey the law to rounding, so their bars cannot be seen.",
        ),
    ]


def tables(results: Sequence[Measured]) -> list[Table]:
    """Law errors of each motion, by evaluations, and of restored motion."""
    rows = {
        name: [dict(one.errors[name].columns) | {"distance": one.distance[name]} for one in results]
        for name in results[0].motions
    }
    counts = {f"{count}": [one.by_count[count] for one in results] for count in results[0].by_count}
    restored = [
        (
            way,
            Spread.of([one.restored.rms[way] for one in results]),
            *(
                None if way == "as seen" else Spread.of([one.restored.errors[way].means()[law] for one in results])
                for law in ("replay", "energy")
            ),
        )
        for way in results[0].restored.rms
    ]
    note = "Noise of one standard deviation of the data on positions and velocities; 4 of 16 frames hidden."
    return [
        turned(law_table(rows, columns=SHOWN, title=f"Law errors at {EVALUATIONS} evaluations"), "law"),
        turned(law_table(counts, columns=SHOWN, title="Law errors by network evaluations"), "law"),
        Table("Restoring noisy, partly hidden motion", ("way", "rms error", "replay", "energy"), restored, note),
    ]


def turned(table: Table, corner: str) -> Table:
    """The table with rows and columns exchanged, which fits a terminal and a phone."""
    names = [str(row[0]) for row in table.rows]
    rows = [(law, *cells) for law, *cells in zip(table.columns[1:], *(row[1:] for row in table.rows))]
    return Table(table.title, (corner, *names), rows, table.note)


def animations(result: Measured) -> list[Animation]:
    """True, generated and steered motion side by side; restored motion over the truth."""
    constants = result.motions["true"].constants
    radius, size = np.asarray(constants["radius"])[0], (1.0, 1.0)
    dt = float(result.motions["true"].ts[1] - result.motions["true"].ts[0])
    panels = {name: np.asarray(result.motions[name].states["x"][:6]) for name in ("true", "generated", "steered")}
    restored = result.restored
    seen = np.asarray(restored.observed.seen)[:6, :, None, None]
    noisy = np.where(seen, np.asarray(restored.observed.states["x"])[:6], np.nan)
    ways = {"as seen": noisy, **{name: np.asarray(states["x"])[:6] for name, states in restored.ways.items()}}
    truth = np.asarray(restored.truth["x"])[:6]
    return [
        animate(
            panels,
            alt="Two balls moving in a box: true, generated and steered motion side by side.",
            caption="Generated and steered motion come from the same noise.",
            name="motion",
            radius=radius,
            box=size,
            dt=dt,
        ),
        animate(
            ways,
            alt="Two balls seen through noise, restored by the law, by the generator and by both, over the truth.",
            caption="The truth is drawn as outlines; in hidden frames nothing is seen.",
            name="restored",
            radius=radius,
            box=size,
            dt=dt,
            ghosts=dict.fromkeys(ways, truth),
        ),
    ]


def page(result: Measured, found: Sequence[Metric], *, seed: int, sizes: Mapping[str, Any]) -> Page:
    """One page a person likes to look at: the job, its pictures, its numbers."""
    judged = Evidence(metrics=found)
    moving, restoring = animations(result)
    learning, evaluations, bars = figures([result])
    by_motion, by_count, restored = tables([result])
    page = Page(
        "Two balls, from simulation to verified motion",
        lede="Simulated exactly, learnt by a small network, generated in 12 evaluations, steered to the law, verified.",
    )
    page.add_verdict(judged.verdict, judged.why)
    page.add_animation(moving)
    page.add_heading("Does it obey the law?")
    page.add_text(
        "A law error is 0 for true motion. `replay` is the total: the true world is run from every frame, and the "
        "next frame compared with where it should be, in units of a typical step. A still ball obeys every law, so "
        "speed, hits and the distance to held-out simulation stand beside the errors."
    )
    page.add_table(by_motion).add_figure(bars)
    page.add_text(
        "*What holds by construction.* Steered motion keeps one state of each generated motion, moved to the "
        "nearest allowed one, and the world's exact flow fills all other frames. Its law errors are therefore "
        "rounding, whatever was generated; what the generator still decides is which motion, and that is judged by "
        "speed, hits and distance. The world alone can sample this motion perfectly: here the generator is the "
        "pupil. Best of 16 has no such guarantee: it keeps the candidate that the world replays best."
    )
    page.add_heading("How many evaluations does it take?")
    page.add_figure(evaluations).add_table(by_count)
    page.add_heading("Where both are needed: restoring")
    page.add_text(
        "Motion seen through noise, with frames missing. The law alone does not know which motion to begin its "
        "search at; the generator alone does not obey the law. Together they are closer than the law alone, and "
        "exact."
    )
    page.add_animation(restoring).add_table(restored)
    page.add_heading("How it was learnt and measured")
    page.add_figure(learning).add_table(metric_table(tuple(found)))
    page.add_settings({"seed": seed, "sizes": dict(sizes), "seconds": result.seconds, **result.run.config.training})
    page.add_settings(provenance.collect(), "Versions and machine")
    return page
