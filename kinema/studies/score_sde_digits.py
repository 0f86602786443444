"""Score SDEs learnt on 8 x 8 digits: bits a dimension of two paths, and pictures drawn under conditions."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from kinema import learn, models
from kinema.errors import require
from kinema.generate import VP, Denoising, Generator, Path, bits_per_dim, dequantise, log_prob
from kinema.generate.objective import capped
from kinema.generate.solver import ancestral, grids
from kinema.report.charts import house
from kinema.steer import Controller, condition_on_mask, condition_on_projection, guide_by_classifier, steer

LEVELS, PIXELS, TRAINED = 17, 64, 1500
NEAR_DATA = 1 - 1e-3  # where the solve begins: u = 0.001
SPREAD = 0.75  # standard deviation of the digits on [-1, 1]
GREY = np.full((1, 3), 3**-0.5)
COLOURS = np.array([[5, 1, 0], [3, 3, 0], [0, 5, 1], [0, 3, 3], [1, 0, 5], [3, 0, 3]]) / 6  # of one brightness
EVALUATIONS = 40


class Digits(NamedTuple):
    """Whole grey values 0 .. 16 `(n, 64)` and labels."""

    values: Int[np.ndarray, "n pixels"]
    labels: Int[np.ndarray, " n"]


class Recipe(NamedTuple):
    """A perceptron and its training."""

    width: int
    depth: int
    steps: int
    batch: int
    rate: float


def digits() -> tuple[Digits, Digits]:
    """scikit-learn's digits in a fixed random order: 1500 to train on, 297 to judge by."""
    data = require("sklearn.datasets", "digits").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    values, labels = data.data.astype(np.int32)[order], data.target.astype(np.int32)[order]
    return Digits(values[:TRAINED], labels[:TRAINED]), Digits(values[TRAINED:], labels[TRAINED:])


def to_density(key, values: Int[Array, " pixels"]) -> Float[Array, " pixels"]:
    """One digit on [-1, 1), dequantised."""
    return dequantise(values, LEVELS, key=key)


LIKELIHOOD = Denoising(weight="noise", augment=to_density)


def fit(path: Path, values: np.ndarray, recipe: Recipe, key) -> Generator:
    """A noise-predicting perceptron on dequantised digits, its weights averaged."""
    key_net, key_fit = jr.split(key)
    net = models.make("mlp", shape=(PIXELS,), width=recipe.width, depth=recipe.depth, key=key_net)
    return learn.fit(
        Generator(path, net, predicts="noise", sigma_data=SPREAD),
        LIKELIHOOD,
        values,
        optimizer=learn.adam(recipe.rate, recipe.steps),
        steps=recipe.steps,
        batch_size=recipe.batch,
        key=key_fit,
        ema=0.999,
        progress=True,
    ).ema


@eqx.filter_jit
def bits(gen: Generator, values: Int[np.ndarray, "n pixels"], divergence: str, key) -> Float[Array, " n"]:
    """Bits a dimension of digits, adaptive Tsit5 at 1e-5; the same key gives every model the same dequantisation and
    directions."""
    key_noise, key_directions = jr.split(key)
    x = dequantise(values, LEVELS, key=key_noise)

    def one(x, key):
        return log_prob(gen, x, key=key, divergence=divergence, probes=4, span=(NEAR_DATA, 0.0))

    found = jax.vmap(one)(x, jr.split(key_directions, len(x)))
    return bits_per_dim(found, LEVELS, PIXELS)


class Classifier(eqx.Module):
    """Logits of ten labels from a noisy picture and its signal."""

    path: Path
    net: Callable
    readout: Float[Array, "pixels labels"]

    def log_probs(self, t, x: Float[Array, "..."]) -> Float[Array, " labels"]:
        a, _, s = self.path.coefficients(t)
        scaled = x * jax.lax.rsqrt((a * SPREAD) ** 2 + s**2)
        return jax.nn.log_softmax(self.net(scaled, self.path.signal(t)).reshape(-1) @ self.readout)


class LabelOf(eqx.Module):
    """log p(label | x at t) by a classifier."""

    classifier: Classifier
    label: Int[Array, ""]

    def __call__(self, t, x) -> Float[Array, ""]:
        return self.classifier.log_probs(t, x)[self.label]


def cross_entropy(classifier: Classifier, batch, key):
    """At all signals alike."""
    key_time, key_noise, key_paint = jr.split(key, 3)
    n = len(batch["cond"])
    times = jr.uniform(key_time, (n,), maxval=classifier.path.t_max)

    def one(t, key_noise, key_paint, values, label):
        x = classifier.path.perturb(key_noise, t, paint(key_paint, values)).x
        return -classifier.log_probs(t, x)[label]

    keys = jr.split(key_noise, n), jr.split(key_paint, n)
    return jax.vmap(one)(times, *keys, batch["x1"], batch["cond"]).mean(), {}


def paint(key, values: Int[Array, " pixels"]) -> Float[Array, "8 8 3"]:
    """One digit in a random colour on black, on [-1, 1]."""
    key_noise, key_colour = jr.split(key)
    ink = (to_density(key_noise, values).reshape(8, 8, 1) + 1) / 2
    return 2 * ink * jnp.asarray(COLOURS, ink.dtype)[jr.choice(key_colour, len(COLOURS))] - 1


@jax.jit
def painted(key, values: Int[Array, "n pixels"]) -> Float[Array, "n 8 8 3"]:
    """Digits in random colours."""
    return jax.vmap(paint)(jr.split(key, len(values)), values)


PAINTED = Denoising(weight=capped("velocity", 400.0), augment=paint)


class Pictures(NamedTuple):
    """One generator of coloured digits and one classifier of noisy ones: all conditions are met without retraining."""

    generator: Generator
    classifier: Classifier


def fit_pictures(data: Digits, recipe: Recipe, key) -> Pictures:
    """Colours take twice the width and twice the rate of grey digits."""
    key_net, key_fit, key_judge, key_readout, key_fit_judge = jr.split(key, 5)
    path, shape = VP(), (8, 8, 3)
    settings = {
        "optimizer": learn.adam(2 * recipe.rate, recipe.steps),
        "steps": recipe.steps,
        "batch_size": recipe.batch,
        "ema": 0.995,
        "progress": True,
    }
    net = models.make("mlp", shape=shape, width=2 * recipe.width, depth=recipe.depth, key=key_net)
    gen = Generator(path, net, sigma_data=SPREAD)
    gen = learn.fit(gen, PAINTED, {"x1": data.values}, key=key_fit, **settings).ema
    judge = models.make("mlp", shape=shape, width=64, depth=min(recipe.depth, 2), key=key_judge)
    judge = Classifier(path, judge, jr.normal(key_readout, (3 * PIXELS, 10)) * 0.07)
    batch = {"x1": data.values, "cond": data.labels}
    judge = learn.fit(judge, cross_entropy, batch, key=key_fit_judge, **settings).ema
    return Pictures(gen, judge)


def draw(made: Pictures, controller: Controller, n: int, key) -> Float[Array, "n 8 8 3"]:
    """Coloured digits under a controller."""
    path = made.generator.path
    plan = ancestral(path, grids.log_snr(path, EVALUATIONS, low=-4.5, high=4.5))
    return steer(made.generator, plan, controller, n, key=key, shape=(8, 8, 3)).x


def of_labels(made: Pictures, each: int, key, scale: float) -> Float[Array, "n 8 8 3"]:
    """`each` digits of every label, guided by the classifier."""
    guides = [guide_by_classifier(LabelOf(made.classifier, jnp.array(label)), scale) for label in range(10)]
    return jnp.concatenate([draw(made, guide, each, jr.fold_in(key, i)) for i, guide in enumerate(guides)])


def recognised(pictures: Float[Array, "n 8 8 3"], labels: np.ndarray, trained: Digits) -> float:
    """Share that a support-vector machine, trained on real grey digits, takes for their labels."""
    judge = require("sklearn.svm", "digits").SVC().fit(trained.values, trained.labels)
    ink = (np.asarray(pictures).mean(-1) + 1) / 2 * 3 * LEVELS - 0.5  # the mean over colours is a third of the ink
    return float(judge.score(np.clip(ink, 0, 16).reshape(-1, PIXELS), labels))


def restored(made: Pictures, truth: Float[Array, "n 8 8 3"], columns: int, key):
    """Held-out digits, what is left of them to see, and `columns` restorations: lower halves, then colours."""
    key_half, key_grey = jr.split(key)
    top = np.broadcast_to(np.arange(8)[:, None, None] < 4, (8, 8, 3))
    repeated = jnp.repeat(truth, columns, 0)
    halves = draw(made, condition_on_mask(top, repeated), len(repeated), key_half)
    greys = draw(made, condition_on_projection(GREY, repeated @ GREY.T), len(repeated), key_grey)
    rows = []
    for given, drawn in ((jnp.where(top, truth, 0.0), halves), (truth @ GREY.T @ GREY, greys)):
        drawn = drawn.reshape(len(truth), columns, 8, 8, 3)
        rows += [jnp.concatenate([truth[i : i + 1], given[i : i + 1], drawn[i]]) for i in range(len(truth))]
    return rows


def sheet(rows, names):
    """Rows of coloured pictures, named at the left."""
    height = len(rows)
    with house(0.42 * max(map(len, rows)) + 0.9, 0.44 * height, nrows=height, squeeze=False) as (figure, grid):
        for axes, row, name in zip(grid[:, 0], rows, names):
            values = np.clip((np.asarray(row) + 1) / 2 * 1.2, 0, 1)
            gap = np.ones((*values.shape[:2], 1, values.shape[3]))
            apart = np.concatenate([values, gap], 2)
            axes.imshow(np.concatenate(list(apart), 1)[:, :-1], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
