"""Handwritten digits carried to digits: 0 to 5, 1 to 6, up to 4 to 9, by one learnt map that is told no class."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import learn, models
from kinema.errors import require
from kinema.generate import Generator, Interpolant, Interpolating, sample
from kinema.generate.alike import bind_alike
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.score_sde_digits import PIXELS, SPREAD, digits
from kinema.studies.stochastic_interpolants_sets import dynamics
from kinema.verify.distances import energy_distance

PATH = Interpolant("linear", "sqrt", scale=0.4)
NOISE, UP, PARTNERS = 0.1, 5, 20  # e; from class to class; partners of every digit
COPIES = 3  # of every held-out digit, each with noise of its own
LOOK = 2  # digits of a class to look at


class Carried(NamedTuple):
    """Share recognised as the class wanted and distance to held-out digits, by kind of motion; and pictures of it."""

    recognised: dict[str, float]
    distances: dict[str, float]
    rows: dict[str, np.ndarray]


def scaled(values: np.ndarray) -> np.ndarray:
    """Grey values 0 .. 16 on [-1, 1]."""
    return values.astype(np.float32) / 8 - 1


def pairs(values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Every digit of the lower classes with `PARTNERS` random ones of the class five above."""
    random = np.random.default_rng(0)
    starts = np.repeat(np.flatnonzero(labels < UP), PARTNERS)
    ends = np.array([random.choice(np.flatnonzero(labels == labels[i] + UP)) for i in starts])
    return {"x0": scaled(values[starts]), "x1": scaled(values[ends])}


def carried(width: int, steps: int, key) -> Carried:
    trained, held = digits()
    key_net, key_fit, key_draw = jr.split(key, 3)
    net = models.make("mlp", shape=(PIXELS,), width=width, depth=3, outputs=2, key=key_net)
    made = learn.fit(
        Generator(PATH, net, predicts=("transport", "noise"), sigma_data=SPREAD),
        Interpolating(coupling="paired", antithetic=False),
        pairs(trained.values, trained.labels),
        steps=steps,
        batch_size=128,
        optimizer=learn.adam(3e-3, steps),
        key=key_fit,
        ema=0.99,
        progress=True,
    ).ema
    judge = require("sklearn.svm", "digits").SVC().fit(scaled(trained.values), trained.labels)
    lower = held.labels < UP
    starts, wanted = np.tile(scaled(held.values[lower]), (COPIES, 1)), np.tile(held.labels[lower] + UP, COPIES)
    truth = scaled(held.values[~lower])
    plans = {
        "flow": dynamics(PATH, 30, 0.0),
        f"e = {NOISE:g}": dynamics(PATH, 60, NOISE),
    }
    clouds = {"start": starts}
    for name, plan in bind_alike(plans, made).items():
        drawn = sample(made, plan, len(starts), key=key_draw, shape=(PIXELS,), x0=jnp.asarray(starts))
        clouds[name] = np.asarray(drawn.x)
    apart = {name: float(energy_distance(x, truth)) for name, x in clouds.items()}
    first = np.concatenate([np.flatnonzero(wanted[: len(wanted) // COPIES] == k + UP)[:LOOK] for k in range(UP)])
    rows = {name: x[first] for name, x in clouds.items()}
    rows["again"] = clouds[f"e = {NOISE:g}"][first + len(wanted) // COPIES]
    return Carried(
        {name: float(judge.score(clouds[name], wanted)) for name in plans}
        | {"real": float(judge.score(truth, held.labels[~lower]))},
        apart | {"real": float(energy_distance(scaled(trained.values[trained.labels >= UP]), truth))},
        rows,
    )


def carried_picture(made: Carried) -> Picture:
    count = len(made.rows)
    with house(0.5 * LOOK * UP + 0.7, 0.55 * count, nrows=count, squeeze=False) as (figure, grid):
        for axes, (name, row) in zip(grid[:, 0], made.rows.items()):
            padded = np.pad(row.reshape(-1, 8, 8), ((0, 0), (0, 0), (0, 1)), constant_values=-1)
            axes.imshow(np.concatenate(list(padded), 1), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return Picture(
        "digits",
        figure,
        "Held-out digits 0 to 4 and what a learnt map makes of them: 5 to 9, by the flow and twice with noise",
        "Held-out digits of 0 to 4, carried to the class five above: by the flow, and twice with noise e = 0.1. The "
        "network is told no class.",
    )
