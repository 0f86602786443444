"""Handwritten digits from a plain `.npz`: the five verbs on data of the user's own."""

from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.errors import require
from kinema.generate import Guided, Run, sample, solver, train
from kinema.motion.readers import Dataset, read
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.studies.evidence import Evidence, Metric
from kinema.studies.study import study
from kinema.verify.distances import energy_distance

STEPS = {"smoke": 10, "quick": 400, "full": 4000}
NETWORK = {"smoke": {"width": 8, "levels": 1}}  # else the default for pictures
SAMPLES = {"smoke": 20, "quick": 500, "full": 5000}
TRAINED = 1500  # of 1,797 digits; the rest judge


@study(
    "digits",
    "Ho & Salimans, 2022, arXiv 2207.12598",
    "Trained on real digits from a plain file in under five minutes of two cores, a class-conditional generator draws "
    "digits that a classifier trained on real ones recognises; guidance makes them clearer and less varied.",
    title="Handwritten digits from a plain file",
    stage="pipeline",
)
def run(preset: str, seed: int) -> Evidence:
    with TemporaryDirectory() as folder:
        data = read(write_digits(Path(folder) / "digits.npz"))
    trained, rest = split(data)
    judge = classifier(trained)
    key_fit, key_draw = jr.split(jr.key(seed))
    made = train(
        trained.arrays,
        labels=trained.labels,
        key=key_fit,
        steps=STEPS[preset],
        sizes=NETWORK.get(preset),
        progress=True,
    )
    labels = np.arange(SAMPLES[preset]) % 10
    drawn = {scale: draw(made, labels, key_draw, scale) for scale in (1.0, 2.0)}
    agreement = {scale: judge.score(flat(x), labels) for scale, x in drawn.items()}
    apart = {scale: float(energy_distance(x, rest.arrays)) / 8 for scale, x in drawn.items()}
    real = judge.score(flat(rest.arrays), rest.labels)
    return Evidence(
        metrics=[
            Metric("recognised", agreement[1.0], 0.9, ">=", baseline=real, against="real digits held out"),
            Metric("recognised, guidance 2", agreement[2.0], 0.9, ">=", baseline=real, against="real digits held out"),
            Metric("distance to held-out digits", apart[1.0]),
            Metric("distance to held-out digits, guidance 2", apart[2.0]),
        ],
        figures=[
            Picture("drawn", sheet(drawn[1.0]), "Generated digits, a class a column", "Generated, no guidance."),
            Picture("guided", sheet(drawn[2.0]), "Generated digits with guidance, a class a column", "Guidance 2."),
        ],
        settings={"network": made.config.model, "training": made.config.training, "solver": "dpmpp-2m, 20 steps"},
    )


def write_digits(file: Path) -> Path:
    """scikit-learn's 8 x 8 digits, scaled to 0 .. 1, as any user would save them."""
    digits = require("sklearn.datasets", "digits").load_digits()
    np.savez(file, x=digits.images[..., None] / 16, labels=digits.target)
    return file


def split(data: Dataset) -> tuple[Dataset, Dataset]:
    """Digits to train on and digits to judge by."""
    first, rest = slice(0, TRAINED), slice(TRAINED, None)
    return Dataset(data.arrays[first], data.labels[first]), Dataset(data.arrays[rest], data.labels[rest])


def classifier(data: Dataset):
    """A support-vector machine on real digits."""
    return require("sklearn.svm", "digits").SVC().fit(flat(data.arrays), data.labels)


def draw(made: Run, labels: np.ndarray, key, scale: float = 1.0) -> jax.Array:
    """One digit for every label, in the units of the file."""
    gen = made.generator
    gen = gen if scale == 1 else Guided(gen, jnp.asarray(made.config.sample.classes), scale)
    plan = solver.make("dpmpp-2m", gen.path, 20)
    samples = sample(gen, plan, len(labels), key=key, shape=made.shape, cond=jnp.asarray(labels), batch_size=250)
    return jax.vmap(made.codec.decode)(samples.x)


def flat(x) -> np.ndarray:
    return np.asarray(x).reshape(len(x), -1)


def sheet(x, down: int = 6):
    """The first digits, a class a column."""
    x = np.asarray(x)[: 10 * down, ..., 0]
    rows = len(x) // 10
    with house(4.8, 0.48 * rows) as (figure, axes):
        axes.imshow(x[: 10 * rows].reshape(rows, 10, 8, 8).transpose(0, 2, 1, 3).reshape(8 * rows, 80), cmap="gray_r")
        axes.set_axis_off()
    return figure
