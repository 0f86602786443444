"""Distances between two sets of samples: are these motions drawn from the same law?

Every function takes two PyTrees (or plain arrays) whose leaves have a leading sample axis, `(n, ...)` and `(m, ...)`;
what follows that axis is flattened. Sizes n and m may differ. Rows are worked through in chunks, so memory stays near
16 million numbers at any n. `energy_distance` and `mmd` are unbiased: between equal laws they scatter around 0 and may
be negative; `permutation_test` says how widely.

In single precision a distance below 3e-4 of the distance to the centre of all samples is not resolved in more than 16
dimensions.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PyTree

from kinema.errors import InputError

CHUNK_NUMBERS = 2**22  # numbers in one block of pairwise distances


def energy_distance(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, by its unbiased estimate (pairs of one sample with itself are left out).

    0 only for equal laws; in units of the data. For d independent coordinates it grows like sqrt(d): divide by that to
    compare dimensions.

    Raises:
        InputError: fewer than two samples, other leaves or shapes in `y` than in `x`, values that are not finite.

    Reference: Székely & Rizzo, 2013.
    """
    x, y = _pair(x, y)
    return _two_sample(_distance, x, y)


def mmd(x: PyTree, y: PyTree, *, bandwidth: float | None = None) -> Float[Array, ""]:
    """Squared maximum mean discrepancy with kernel exp(-|x - y|^2 / (2 bandwidth^2)), by its unbiased estimate.

    `bandwidth` is by default the median distance between all samples (of at most 1000 of them, evenly chosen).

    Raises:
        InputError: as `energy_distance`; `bandwidth` not positive, or all samples equal so that the median is 0.

    Reference: Gretton et al., 2012.
    """
    x, y = _pair(x, y)
    return _two_sample(_gaussian(x, y, bandwidth), x, y)


def sliced_wasserstein(
    x: PyTree, y: PyTree, key: Key[Array, ""], *, projections: int = 256, order: float = 2.0
) -> Float[Array, ""]:
    """(mean over directions of W_p^p between the projected samples)^(1/p), W_p exact in one dimension, p = `order`.

    Not negative, so biased upward between equal laws: compare with the value between two halves of the true samples.

    Raises:
        InputError: as `energy_distance`; `projections` or `order` below 1.

    Reference: Bonneel et al., 2015.
    """
    if projections < 1 or order < 1:
        raise InputError(f"projections and order must be at least 1, got {projections=} and {order=}")
    x, y = _pair(x, y)
    directions = jr.normal(key, (projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    return _sliced(x, y, directions, order)


class ClassifierTest(NamedTuple):
    """Held-out accuracy of telling two sets apart (mean of both classes' accuracies); 0.5 is chance, 1 is certainty."""

    accuracy: Float[Array, ""]
    standard_error: Float[Array, ""]


def classifier_two_sample(
    x: PyTree,
    y: PyTree,
    key: Key[Array, ""],
    *,
    width: int = 64,
    steps: int = 300,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-2,
) -> ClassifierTest:
    """Train a small network on half of the samples to tell `x` from `y`; its accuracy on the other half.

    One hidden layer, standardised inputs, full-batch AdamW. A row that occurs in both halves (resampled particles) is
    recognised, so remove duplicates first.

    Raises:
        InputError: as `energy_distance`; fewer than four samples in a set.

    Reference: Lopez-Paz & Oquab, 2017.
    """
    x, y = _pair(x, y, least=4)
    return _classify(x, y, key, width, steps, learning_rate, weight_decay)


class PermutationTest(NamedTuple):
    """A distance against what chance gives: `spread` is its standard deviation when labels are shuffled."""

    value: Float[Array, ""]
    spread: Float[Array, ""]
    p_value: Float[Array, ""]


def permutation_test(
    x: PyTree, y: PyTree, key: Key[Array, ""], *, distance: str = "energy", permutations: int = 200
) -> PermutationTest:
    """`energy_distance` or `mmd` ("energy", "mmd") with the law it would have if `x` and `y` came from one law.

    All shuffles share one pass over the pairs. The p-value counts the value itself: (1 + larger) / (1 + permutations).

    Raises:
        InputError: as `energy_distance`; another name; `permutations` below 1.
    """
    if distance not in ("energy", "mmd"):
        raise InputError(f"distance must be 'energy' or 'mmd', got {distance!r}")
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, got {permutations}")
    x, y = _pair(x, y)
    kernel = _distance if distance == "energy" else _gaussian(x, y, None)
    pooled, n = jnp.concatenate([x, y]), x.shape[0]
    rank = jax.vmap(lambda k: jr.permutation(k, pooled.shape[0]))(jr.split(key, permutations))
    first = jnp.concatenate([jnp.arange(pooled.shape[0])[None], rank]) < n
    values = _shuffled(kernel, pooled, first, n)
    value, chance = values[0], values[1:]
    return PermutationTest(value, chance.std(), (1 + jnp.sum(chance >= value)) / (1 + permutations))


def _pair(x: PyTree, y: PyTree, least: int = 2) -> tuple[Array, Array]:
    """Two matrices `(n, d)`, `(m, d)`, moved together so that their common mean is 0."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(x)]
    if jax.tree.structure(x) != jax.tree.structure(y):
        raise InputError(f"x and y need the same structure, got {jax.tree.structure(x)} and {jax.tree.structure(y)}")
    if not names:
        raise InputError("x and y hold no arrays")
    sides = [jax.tree.leaves(x), jax.tree.leaves(y)]
    for name, a, b in zip(names, *sides):
        if np.ndim(a) < 1 or np.ndim(b) < 1 or np.shape(a)[1:] != np.shape(b)[1:]:
            raise InputError(f"x{name} and y{name} need shapes (n, ...) and (m, ...), got {np.shape(a)}, {np.shape(b)}")
    matrices = [_matrix(leaves, side, names, least) for leaves, side in zip(sides, "xy")]
    dtype = jnp.result_type(*matrices)
    x, y = (matrix.astype(dtype) for matrix in matrices)
    centre = (x.mean(0) + y.mean(0)) / 2
    return x - centre, y - centre


def _matrix(leaves, side: str, names: list[str], least: int) -> Array:
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    sizes = {array.shape[0] for array in arrays}
    if len(sizes) > 1 or min(sizes) < least:
        raise InputError(f"every leaf of {side} needs the same number of samples, {least} or more, got {sorted(sizes)}")
    for name, array in zip(names, arrays):
        if jnp.iscomplexobj(array):
            raise InputError(f"{side}{name} is complex; give real and imaginary parts as two leaves")
        if not isinstance(array, Tracer) and not bool(jnp.isfinite(array).all()):
            raise InputError(f"{side}{name} holds values that are not finite")
    return jnp.concatenate([array.reshape(array.shape[0], -1).astype(float) for array in arrays], axis=1)


def _square(a, b):
    """Squared distances of all rows. The product form is 20 times faster in many dimensions, but cancels: see above."""
    if a.shape[1] <= 16:
        return jnp.sum((a[:, None] - b[None]) ** 2, -1)
    square = jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1) - 2 * jnp.dot(a, b.T, precision="highest")
    return jnp.maximum(square, 0.0)


class _Distance(eqx.Module):
    def __call__(self, a, b):
        return -jnp.sqrt(_square(a, b))


class _Gaussian(eqx.Module):
    bandwidth: Float[Array, ""]

    def __call__(self, a, b):
        return jnp.exp(-_square(a, b) / (2 * self.bandwidth**2))


_distance = _Distance()


def _gaussian(x, y, bandwidth) -> _Gaussian:
    if bandwidth is None:
        pooled = jnp.concatenate([x, y])
        pooled = pooled[np.linspace(0, len(pooled) - 1, min(len(pooled), 1000)).astype(int)]
        distances = jnp.sqrt(_square(pooled, pooled))[np.triu_indices(len(pooled), 1)]
        bandwidth = jnp.median(distances)
    if not isinstance(bandwidth, Tracer) and not bandwidth > 0:
        raise InputError(f"bandwidth must be positive, got {float(bandwidth)}; are all samples equal?")
    return _Gaussian(jnp.asarray(bandwidth, x.dtype))


def _over_rows(function, a, width: int):
    """`function(rows, numbers of the rows)` in chunks, results put together."""
    rows = max(1, min(a.shape[0], CHUNK_NUMBERS // max(width, 1)))
    return jax.lax.map(lambda item: function(item[0][None], item[1])[0], (a, jnp.arange(a.shape[0])), batch_size=rows)


@eqx.filter_jit
def _two_sample(kernel, x, y):
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y) without the diagonals.

    Each row's sum is taken of k - shift: the shift drops out of the total, but not the rounding it saves.
    """
    shift = kernel(x[:64], y[:64]).mean()

    def mean(a, b, same: bool):
        def row(rows, index):
            off = kernel(rows, b) - shift
            return jnp.sum(jnp.where(jnp.arange(b.shape[0]) == index, 0.0, off) if same else off, 1)

        return jnp.mean(_over_rows(row, a, b.shape[0]) / (b.shape[0] - same))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@eqx.filter_jit
def _shuffled(kernel, pooled, first, n: int):
    """The estimate of `_two_sample` for every choice of the first set: masks `(choices, n + m)` over pooled rows."""
    total = pooled.shape[0]
    shift = kernel(pooled[:64], pooled[-64:]).mean()
    chosen = first.astype(pooled.dtype)

    def row(rows, index):
        off = jnp.where(jnp.arange(total) == index, 0.0, kernel(rows, pooled) - shift)
        return jnp.concatenate([off @ chosen.T, off.sum(1, keepdims=True)], 1)

    sums = _over_rows(row, pooled, total + first.shape[0])
    to_first, to_all = sums[:, :-1].T, sums[:, -1]
    within = jnp.sum(chosen * to_first, 1)
    across = jnp.sum((1 - chosen) * to_first, 1)
    rest = jnp.sum(to_all) - within - 2 * across
    m = total - n
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)


@eqx.filter_jit
def _sliced(x, y, directions, order: float):
    n, m = x.shape[0], y.shape[0]
    # Between the union of both sets' quantile steps both quantile functions are constant: exact for any n and m.
    steps = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
    weight = jnp.asarray(np.diff(steps, prepend=0) / (n * m), x.dtype)
    left, right = (steps - 1) // m, (steps - 1) // n

    def along(direction):
        return weight @ jnp.abs(jnp.sort(x @ direction)[left] - jnp.sort(y @ direction)[right]) ** order

    together = max(1, min(directions.shape[0], CHUNK_NUMBERS // (n + m)))
    return jnp.mean(jax.lax.map(along, directions, batch_size=together)) ** (1 / order)


@eqx.filter_jit
def _classify(x, y, key, width: int, steps: int, learning_rate: float, weight_decay: float) -> ClassifierTest:
    key_x, key_y, key_net = jr.split(key, 3)
    train_x, test_x = _halves(jr.permutation(key_x, x))
    train_y, test_y = _halves(jr.permutation(key_y, y))
    seen = jnp.concatenate([train_x, train_y])
    centre, scale = seen.mean(0), seen.std(0)
    scale = jnp.where(scale > 0, scale, 1.0)
    net = eqx.nn.MLP(x.shape[1], "scalar", width, 1, jax.nn.silu, key=key_net, dtype=x.dtype)
    parameters, static = eqx.partition(net, eqx.is_inexact_array)
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)

    def logits(parameters, rows):
        return jax.vmap(eqx.combine(parameters, static))((rows - centre) / scale)

    def loss(parameters):
        softplus = jax.nn.softplus
        return softplus(-logits(parameters, train_x)).mean() + softplus(logits(parameters, train_y)).mean()

    def step(carry, _):
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters), state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    (parameters, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=steps)
    right = logits(parameters, test_x) > 0, logits(parameters, test_y) <= 0
    return ClassifierTest((right[0].mean() + right[1].mean()) / 2, jnp.hypot(_error(right[0]), _error(right[1])) / 2)


def _halves(rows):
    half = rows.shape[0] // 2
    return rows[:half], rows[half:]


def _error(right):
    """Standard error of a share; one success and one failure are added so that a perfect score has an error too."""
    share = (right.sum() + 1) / (right.size + 2)
    return jnp.sqrt(share * (1 - share) / (right.size + 2))
