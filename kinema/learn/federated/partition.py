"""Rows of a data set dealt out to clients, and clients of unequal size on one leading axis."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Shaped

from kinema.errors import InputError
from kinema.learn.batches import check_data, key_words
from kinema.learn.population import count_members

TRIES = 100


class Clients(eqx.Module):
    """Data of all clients: leaves (clients, rows, ...), of which the first `sizes` rows of each client count.

    `jax.vmap` over it gives single clients. Made by `divide`, or from stacked data by `stacked`.
    """

    data: PyTree
    sizes: Int[Array, "..."]

    def order(self, key: PRNGKeyArray) -> Int[Array, " rows"]:
        """The rows of one client in random order, the ones that do not count last.

        A row's place depends on the key and the rows that count, not on how far the data were filled up.
        """
        rows = jnp.arange(len(jax.tree.leaves(self.data)[0]))
        drawn = jax.vmap(lambda row: jr.uniform(jr.fold_in(key, row), dtype=jnp.float32))(rows)
        return jnp.argsort(jnp.where(rows < self.sizes, drawn, jnp.inf))

    def batch(self, order: Int[Array, " rows"], step: Int[Array, ""], size: int | None) -> PyTree:
        """The batch of a step of one client: `size` rows in turn, round and round; None: all rows as they are."""
        if size is None:
            return self.data
        rows = order[(step * size + jnp.arange(size)) % self.sizes]
        return jax.tree.map(lambda x: x[rows], self.data)


def stacked(data: PyTree, sizes: Any = None) -> Clients:
    """Clients from leaves (clients, rows, ...); `sizes` says how many rows of each count, by default all.

    Raises:
        InputError: leaves of unequal leading axes (one is named), a client with no data, sizes that do not fit.
    """
    count = count_members(data, "clients")
    rows = count_members(jax.tree.map(lambda x: np.empty(jnp.shape(x)[1:2]), data), "rows of the clients")
    sizes = np.full(count, rows) if sizes is None else np.asarray(sizes)
    if sizes.shape != (count,) or sizes.dtype.kind not in "iu":
        raise InputError(f"sizes must be {count} whole numbers, got {sizes.dtype} of shape {sizes.shape}")
    if not sizes.min() >= 1:
        raise InputError(f"client {int(np.argmin(sizes))} has no data: its size is {sizes.min()}")
    if sizes.max() > rows:
        raise InputError(f"client {int(np.argmax(sizes))} has size {sizes.max()}, more than the {rows} rows there are")
    return Clients(jax.tree.map(jnp.asarray, data), jnp.asarray(sizes, jnp.int32))


def divide(data: PyTree, parts: Sequence[Shaped[np.ndarray, "_"]]) -> Clients:
    """Clients with the rows of `data` that `parts` names for each, filled up to the longest by their first row.

    >>> divide(np.arange(5.0), [np.array([0, 1, 2]), np.array([4])]).data.tolist()
    [[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]]

    Raises:
        InputError: a client with no data, rows that are not there, data as `learn.fit` refuses it.
    """
    total = check_data(data)
    sizes = [len(part) for part in parts]
    if not sizes or min(sizes) == 0:
        raise InputError(
            f"client {sizes.index(0)} has no data" if sizes else "parts is empty; give one for each client"
        )
    for client, part in enumerate(parts):
        if np.min(part) < 0 or np.max(part) >= total:
            raise InputError(f"part {client} names rows outside 0..{total - 1}: {np.min(part)} .. {np.max(part)}")
    index = np.stack([np.concatenate([part, np.full(max(sizes) - len(part), part[0])]) for part in parts])
    return stacked(jax.tree.map(lambda x: x[index], data), np.array(sizes))


def dirichlet(
    labels: Shaped[Any, " rows"], clients: int, alpha: float, *, key: PRNGKeyArray, least: int = 1
) -> list[np.ndarray]:
    """Rows of each client: of every label a share drawn from a symmetric Dirichlet law [Hsu et al. 2019].

    Small `alpha` (0.1) gives clients of few labels, large (100) clients alike. Drawn again until every client has
    `least` rows.

    >>> parts = dirichlet(np.arange(100) % 10, 4, 0.5, key=jr.key(0))
    >>> sorted(np.concatenate(parts).tolist()) == list(range(100))
    True

    Raises:
        InputError: alpha not positive, more clients than rows allow, or no luck in 100 draws.
    """
    labels = _checked(labels, clients)
    if not alpha > 0:
        raise InputError(f"alpha must be positive, got {alpha}")
    if least < 1 or clients * least > len(labels):
        raise InputError(f"least must be in 1..{len(labels) // clients} for {clients} clients, got {least}")
    random = _random(key)
    for _ in range(TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            rows = random.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(random.dirichlet(np.full(clients, float(alpha))))[:-1]
            for part, piece in zip(parts, np.split(rows, np.round(ends * len(rows)).astype(int))):
                part.append(piece)
        found = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, found)) >= least:
            return found
    raise InputError(f"in {TRIES} draws some client had fewer than {least} rows; raise alpha={alpha} or lower least")


def shards(labels: Shaped[Any, " rows"], clients: int, per_client: int, *, key: PRNGKeyArray) -> list[np.ndarray]:
    """Rows of each client: `per_client` shards of equal size, cut from the rows by label [McMahan et al. 2017].

    >>> [np.unique(np.arange(100)[part] % 10).size <= 2 for part in shards(np.arange(100) % 10, 5, 2, key=jr.key(0))]
    [True, True, True, True, True]

    Raises:
        InputError: more shards than rows.
    """
    labels = _checked(labels, clients)
    if not 1 <= per_client <= len(labels) // clients:
        raise InputError(f"per_client must be in 1..{len(labels) // clients}, got {per_client}")
    pieces = np.array_split(np.argsort(labels, kind="stable"), clients * per_client)
    dealt = _random(key).permutation(len(pieces)).reshape(clients, per_client)
    return [np.sort(np.concatenate([pieces[one] for one in hand])) for hand in dealt]


def by_key(keys: Shaped[Any, " rows"]) -> list[np.ndarray]:
    """Rows of each client: one client for every distinct value, in rising order of the values.

    >>> [part.tolist() for part in by_key(np.array([1, 0, 1]))]
    [[1], [0, 2]]
    """
    keys = _checked(keys, 1)
    return [np.flatnonzero(keys == value) for value in np.unique(keys)]


def _checked(labels, clients: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise InputError(f"labels must be one for each row, got shape {labels.shape}")
    if not 1 <= clients <= len(labels):
        raise InputError(f"clients must be in 1..{len(labels)}, the number of rows, got {clients}")
    return labels


def _random(key: PRNGKeyArray) -> np.random.Generator:
    return np.random.default_rng([int(word) for word in np.asarray(key_words(key)).ravel()])
