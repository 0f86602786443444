"""What the study of equilibrium propagation runs: digits placed in noise, trainings of all seeds side by side."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, PyTree

from kinema import learn
from kinema.errors import require
from kinema.learn import equilibrium as eq
from kinema.learn.gradient import GradientSource
from kinema.motion import trees

CLASSES, TRAINED = 10, 1400  # of 1,797 digits; the rest judge
SIDE, NOISE = 12, 0.2


class Data(NamedTuple):
    """Pictures (n, d) and labels, to train on and held out."""

    x: Array
    y: Array
    x_held: Array
    y_held: Array


def plain_digits() -> Data:
    """scikit-learn's digits as they are, 8 x 8."""
    images, labels = _load()
    return _data((images[:TRAINED], labels[:TRAINED]), (images[TRAINED:], labels[TRAINED:]))


def placed_digits(copies: int) -> Data:
    """Digits anywhere on 12 x 12 pixels in Gaussian noise: `copies` of each to train on, 10 of each held out."""
    images, labels = _load()
    random = np.random.default_rng(0)

    def placed(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = NOISE * random.standard_normal((len(rows), SIDE, SIDE))
        for picture, row in zip(x, rows):
            down, right = random.integers(0, SIDE - 8 + 1, 2)
            picture[down : down + 8, right : right + 8] += images[row]
        return x, labels[rows]

    rows = np.arange(len(images))
    return _data(placed(np.repeat(rows[:TRAINED], copies)), placed(np.repeat(rows[TRAINED:], 10)))


class Nets(NamedTuple):
    """One network a seed: arrays with a leading axis of seeds, and what all share."""

    params: PyTree
    static: PyTree

    @classmethod
    def draw(cls, sizes: tuple[int, ...], angle: float | None, seeds: tuple[int, ...]) -> "Nets":
        nets = [eq.dense_network(sizes, CLASSES, angle=angle, key=jr.key(seed)) for seed in seeds]
        parts = [eqx.partition(net, eqx.is_array) for net in nets]
        return cls(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for params, _ in parts)), parts[0][1])


class Run(NamedTuple):
    """A training that can go on: the state of every seed."""

    state: learn.LearnState
    static: PyTree
    source: GradientSource
    optimizer: optax.GradientTransformation
    keys: Array

    @classmethod
    def begin(cls, nets: Nets, source: GradientSource, optimizer, seeds: tuple[int, ...]) -> "Run":
        state = jax.vmap(lambda params: learn.begin(optimizer, params, None))(nets.params)
        return cls(state, nets.static, source, optimizer, jax.vmap(jr.key)(jnp.asarray(seeds)))

    @property
    def nets(self) -> Nets:
        return Nets(self.state.params, self.static)

    def go(self, data: Data, steps: int, batch: int) -> "Run":
        """The run after `steps` more steps."""
        return self._replace(state=_train(self, data.x, data.y, steps, batch))


@eqx.filter_jit
def _train(run: Run, x: Array, y: Array, steps: int, batch: int) -> learn.LearnState:
    def one(state, key):
        key_rows, key_run = jr.split(key)

        def step(state, _):
            rows = jr.randint(jr.fold_in(key_rows, state.step), (batch,), 0, len(x))
            pair = x[rows], y[rows]
            how: dict[str, Any] = {"source": run.source, "optimizer": run.optimizer, "ema": None}
            return learn.advance(state, run.static, pair, key_run, **how)[0], None

        return jax.lax.scan(step, state, length=steps)[0]

    return jax.vmap(one)(run.state, run.keys)


@functools.cache
def falling_adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam whose rate falls to 0 on a cosine."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def mean_loss(steps: int) -> GradientSource:
    """Back-propagation through `steps` steps of the dynamics."""

    def objective(net, batch, key):
        return jax.vmap(lambda x, y: eq.settled_loss(net, x, y, steps=steps))(*batch).mean(), {}

    return learn.BackPropagation(objective)


class Alignment(NamedTuple):
    """Of every seed: cosines of estimate and gradient by layer (seeds, layers), of all layers together, and the share
    of samples that did not settle."""

    by_layer: np.ndarray
    together: np.ndarray
    unsettled: np.ndarray

    @property
    def worst(self) -> np.ndarray:
        return self.by_layer.min(1)


def alignment(nets: Nets, x: Array, y: Array) -> Alignment:
    """Between the derivative estimate and the true gradient of the layers' weights."""
    return Alignment(*(np.asarray(values) for values in _alignment(nets, x, y)))


@eqx.filter_jit
def _alignment(nets: Nets, x: Array, y: Array):
    def cosine(one, other):
        return trees.dot(one, other) / (trees.norm(one) * trees.norm(other))

    def of(params):
        grads, unsettled = [], jnp.zeros(())
        for estimator in (eq.Derivative(), eq.RecurrentBackProp()):
            source = eq.EquilibriumPropagation(estimator=estimator, steps=(100, 100))
            found, aux = source(params, nets.static, (x, y), jr.key(0))
            grads.append([layer.weight for layer in found.maps])
            unsettled = aux["unsettled"]
        return jnp.stack([cosine(*pair) for pair in zip(*grads)]), cosine(*grads), unsettled

    return jax.vmap(of)(nets.params)


@eqx.filter_jit
def accuracy(nets: Nets, x: Array, y: Array) -> Array:
    """Share of labels found after 100 steps, of every seed."""

    def of(params):
        net = eqx.combine(params, nets.static)

        def right(x, y):
            rest = eq.settle(net, x, steps=100).u
            return net.out(net.activate(rest)).argmax() == y

        return jax.vmap(right)(x, y).mean()

    return jax.vmap(of)(nets.params)


def errors_of_nudges(sizes: tuple[int, ...], angle: float, points: tuple[int, ...], beta: float, x, y, seeds):
    """In float64, for every seed: the derivative estimate's relative error against implicit differentiation, and by
    number of points the error of a finite nudge relative to the derivative estimate's delta."""
    with jax.enable_x64(True):
        nets = Nets.draw(sizes, angle, seeds)
        x, y = jnp.asarray(np.asarray(x), float), jnp.asarray(np.asarray(y))
        exact, nudged = _errors(nets, x, y, points, beta)
        return np.asarray(exact), np.asarray(nudged)


@eqx.filter_jit
def _errors(nets: Nets, x: Array, y: Array, points: tuple[int, ...], beta: float):
    def relative(one, other):
        return trees.norm(trees.subtract(one, other)) / trees.norm(other)

    def of(params):
        net = eqx.combine(params, nets.static)
        truth, _ = eq.implicit_gradient(net, x, y, tol=1e-12)
        estimate, _ = eq.ep_gradient(net, x, y, steps=(400, 400))
        task = eq.Nudging(net, x, y, free_steps=400, nudged_steps=400)
        limit = eq.Derivative()(task).delta
        others = [relative(eq.Cauchy(beta, count)(task).delta, limit) for count in points]
        return relative(estimate.maps, truth.maps), jnp.stack(others)

    return jax.vmap(of)(nets.params)


def _load() -> tuple[np.ndarray, np.ndarray]:
    digits = require("sklearn.datasets", "digits").load_digits()
    return digits.images / 16, digits.target


def _data(trained: tuple[np.ndarray, np.ndarray], held: tuple[np.ndarray, np.ndarray]) -> Data:
    arrays = [jnp.asarray(x.reshape(len(x), -1), jnp.float32) for x in (trained[0], held[0])]
    labels = [jnp.asarray(y) for y in (trained[1], held[1])]
    return Data(arrays[0], labels[0], arrays[1], labels[1])
