"""Intrinsic dimension of a set of samples, from distances to their nearest neighbours.

| method    | what is used                                                  | reference            |
|-----------|---------------------------------------------------------------|----------------------|
| two-nn    | ratio of the distances to the second and the first neighbour  | Facco et al. 2017    |
| mle       | distances to k neighbours, maximum likelihood                 | Levina & Bickel 2004 |
| local-pca | principal components of k neighbours, above 5% of the largest | Fukunaga & Olsen 1971|

Samples of a model are data too: these estimates depend on its law alone, whatever its score does elsewhere.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from kinema.errors import InputError, choose

DIRECT = 32  # dimensions up to which all pairs are compared by differences
SPARE = 8
CHUNK_NUMBERS = 2**22  # distances in one block
LEAST = 0.05  # variance of a component that counts, as a share of the largest
TRIMMED = 0.1  # share of the largest ratios that "two-nn" leaves out


class DataDimension(NamedTuple):
    """`dimension` of the whole set, and at each sample where the method is local (else the same everywhere)."""

    dimension: Float[Array, ""]
    local: Float[Array, " n"]


def data_dimension(x: Float[Array, "n d"], *, method: str = "two-nn", neighbours: int = 20) -> DataDimension:
    """Dimension of samples `(n, d)`; all pairs are compared, n^2 d operations in blocks.

    "two-nn" needs no scale and suits curved sets; "mle" has less scatter and reads low in many dimensions;
    "local-pca" gives whole numbers and needs neighbourhoods that look flat. All read low where n is small for the
    dimension: from 8 up by about a tenth at 2000 samples.

    >>> import jax.random as jr
    >>> plane = jr.normal(jr.key(0), (500, 2)) @ jnp.eye(2, 5)
    >>> round(float(data_dimension(plane).dimension))
    2

    Raises:
        InputError: an unknown method; neighbours below 3 or not below n; samples that repeat or are not finite.
    """
    run = choose(METHODS, method, "method")
    if jnp.ndim(x) != 2:
        raise InputError(f"x must have shape (n, d), got {jnp.shape(x)}")
    if not 3 <= neighbours < len(x):
        raise InputError(f"neighbours must be at least 3 and below the {len(x)} samples, got {neighbours}")
    if not isinstance(x, Tracer):
        if not bool(jnp.isfinite(x).all()):
            raise InputError("x holds values that are not finite")
        if len(np.unique(np.asarray(x), axis=0)) < len(x):
            raise InputError("x holds equal rows, whose distance is 0; remove duplicates")
    return run(x, neighbours)


@eqx.filter_jit
def _two_nn(x, neighbours: int):
    _, far = _nearest(x, 2)
    ratios = jnp.sort(far[:, 1] / far[:, 0])
    n = len(ratios)
    kept = n - int(TRIMMED * n)
    # -log(1 - F(ratio)) = d log ratio, a line through the origin
    height = -jnp.log1p(-jnp.arange(1, n + 1) / n)[:kept]
    logs = jnp.log(ratios[:kept])
    found = logs @ height / (logs @ logs)
    return DataDimension(found, jnp.full(n, found))


@eqx.filter_jit
def _mle(x, neighbours: int):
    _, far = _nearest(x, neighbours)
    logs = jnp.log(far[:, -1:] / far[:, :-1])
    local = (neighbours - 2) / logs.sum(1)  # k - 2: without bias; of a mean of many sums k - 1 is
    return DataDimension((neighbours - 1) / logs.sum(1).mean(), local)


@eqx.filter_jit
def _local_pca(x, neighbours: int):
    rows, _ = _nearest(x, neighbours)

    def one(near):
        points = x[near]
        values = jnp.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
        return jnp.sum(values > LEAST * values[0]).astype(x.dtype)

    local = jax.lax.map(one, rows, batch_size=1024)
    return DataDimension(local.mean(), local)


def _nearest(x, k: int):
    """Rows of the k nearest others of each sample, and their distances, nearest first.

    In many dimensions inner products find twice as many and SPARE more; their order is then by differences, since
    |x|^2 + |y|^2 - 2 x.y loses the distance of close points to rounding.
    """
    n, d = x.shape
    few = d <= DIRECT
    batch = max(1, min(n, CHUNK_NUMBERS // (n * (d if few else 1))))
    centred = x - x.mean(0)
    norms = jnp.sum(centred**2, -1)

    def one(item):
        point, number = item
        found = jnp.arange(n)
        if not few:
            _, found = jax.lax.top_k((2 * centred @ point - norms).at[number].set(-jnp.inf), min(2 * k + SPARE, n - 1))
        square = jnp.sum((centred[found] - point) ** 2, -1)
        least, order = jax.lax.top_k(-jnp.where(found == number, jnp.inf, square), k)
        return found[order], jnp.sqrt(-least)

    return jax.lax.map(one, (centred, jnp.arange(n)), batch_size=batch)


METHODS = {"two-nn": _two_nn, "mle": _mle, "local-pca": _local_pca}
"""(x, neighbours) -> DataDimension, by name."""
