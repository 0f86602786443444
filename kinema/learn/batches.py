"""Batches: which rows of the data a step sees, and how they get to the device.

The order is a fresh permutation of all rows in every epoch, one epoch after another without a seam, so a batch may end
one epoch and begin the next, and may be larger than the data. It depends on the key and the step only: a resumed run
sees the rows that an unkilled one would have seen.
"""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.motion import trees

DEVICE_BYTES = 1 << 30  # NumPy data up to this size is copied to the device once; larger data is gathered on the host


def batch_rows(
    key: PRNGKeyArray, rows: int, batch_size: int, step: int, steps: int = 1
) -> Int[np.ndarray, "steps batch"]:
    """The rows of the data that steps `step`, ..., `step + steps - 1` of a run with `key` see.

    >>> import jax.random as jr
    >>> sorted(batch_rows(jr.key(0), 6, 2, step=0, steps=3).ravel().tolist())
    [0, 1, 2, 3, 4, 5]
    """
    return _Order(key, rows, batch_size).rows(step, steps)


def check_data(data: PyTree) -> int:
    """The number of rows, the same in every leaf. Reads all data once.

    Raises:
        InputError: no arrays or no rows; a leaf that is not an array, has another number of rows, or holds NaN or
            infinity. Leaf and row are named.
    """
    for name, leaf in trees.named_leaves(data):
        if not eqx.is_array(leaf) or leaf.ndim == 0:
            kind = "a single number" if eqx.is_array(leaf) else f"a {type(leaf).__name__}"
            raise InputError(f"data must be arrays with one leading axis of rows; leaf {name} is {kind}")
    sizes = {name: len(leaf) for name, leaf in trees.leaf_names(data).items()}
    if not sizes:
        raise InputError("data holds no arrays")
    first, rows = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size != rows:
            raise InputError(f"data leaves must have the same number of rows: {first} has {rows}, {name} has {size}")
    if rows == 0:
        raise InputError("data is empty: 0 rows")
    suspects = data
    if _all_finite([leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array)]):
        suspects = jax.tree.map(lambda leaf: None if isinstance(leaf, jax.Array) else leaf, data)
    found = trees.first_not_finite(suspects)
    if found is not None:
        raise InputError(f"data leaf {found[0]} has NaN or infinity in row {found[1]}")
    return rows


class Layout(NamedTuple):
    """How work is spread over devices: rows of a batch over all, everything else copied to each."""

    copied: NamedSharding
    batch: NamedSharding  # rows first
    batches: NamedSharding  # steps first, then rows

    @classmethod
    def over(cls, batch_size: int) -> "Layout | None":
        """All local devices, or None where there is one (or `jax_default_device` names one)."""
        devices = jax.local_devices()
        chosen = getattr(jax.config, "jax_default_device", None)
        if len(devices) == 1 or batch_size == 0 or chosen is not None:
            return None
        count = int(np.gcd(len(devices), batch_size))
        if count < len(devices):
            warnings.warn(
                f"a batch of {batch_size} does not divide over {len(devices)} devices; {count} are used", stacklevel=3
            )
        if count == 1:
            return None
        mesh = Mesh(np.array(devices[:count]), ("batch",))
        specs = PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch")
        return cls(*(NamedSharding(mesh, spec) for spec in specs))


class Batches:
    """Feeds chunks of steps: `table` stays on the device, `inputs(step, steps)` is what one chunk adds.

    `data` None: no table, no inputs, and every batch is None (objectives that make their own points).
    """

    def __init__(self, data: PyTree, batch_size: int, key: PRNGKeyArray, layout: Layout | None):
        self.layout = layout
        self.table = self.host = self.order = None
        if data is None:
            return
        self.order = _Order(key, check_data(data), batch_size)
        leaves = jax.tree.leaves(data)
        if any(isinstance(leaf, jax.Array) for leaf in leaves) or sum(x.nbytes for x in leaves) <= DEVICE_BYTES:
            self.table = jax.device_put(data, None if layout is None else layout.copied)
        else:
            self.host = data

    def rows(self, step: int, steps: int = 1) -> np.ndarray | None:
        """Rows of the data, (steps, batch_size)."""
        return None if self.order is None else self.order.rows(step, steps)

    def inputs(self, step: int, steps: int) -> PyTree:
        """Row numbers, or the rows themselves where the data stays on the host; leading axis of steps."""
        rows = self.rows(step, steps)
        chunk = rows if self.host is None else jax.tree.map(lambda x: x[rows], self.host)
        return chunk if self.layout is None else jax.device_put(chunk, self.layout.batches)


def take(table: PyTree, inputs: PyTree, layout: Layout | None) -> PyTree:
    """One step's batch, inside compiled code."""
    batch = inputs if table is None else jax.tree.map(lambda x: _rows(x, inputs), table)
    return batch if layout is None or batch is None else jax.lax.with_sharding_constraint(batch, layout.batch)


class _Order:
    """The endless sequence of rows, cut into batches; the permutations last used are kept.

    Epochs are shuffled in blocks of at least 65536 rows: with little data and large batches one step has many epochs.
    """

    def __init__(self, key: PRNGKeyArray, rows: int, batch_size: int):
        self.seed = [int(word) for word in np.asarray(key_words(key)).ravel()]
        self.count, self.batch_size = rows, batch_size
        self.epochs = max(1, 65536 // rows)
        self.blocks: dict[int, np.ndarray] = {}

    def rows(self, step: int, steps: int) -> np.ndarray:
        start, stop = step * self.batch_size, (step + steps) * self.batch_size
        length = self.count * self.epochs
        needed = range(start // length, (stop - 1) // length + 1)
        self.blocks = {b: self.blocks[b] if b in self.blocks else self._block(b) for b in needed}
        parts = [self.blocks[b][max(0, start - b * length) : stop - b * length] for b in needed]
        return np.concatenate(parts).reshape(steps, self.batch_size)

    def _block(self, block: int) -> np.ndarray:
        random = np.random.default_rng([*self.seed, block])
        rows = np.arange(self.count, dtype=np.int32 if self.count < 2**31 else np.int64)
        if self.epochs > 1:
            return random.permuted(np.tile(rows, (self.epochs, 1)), axis=1).ravel()
        random.shuffle(rows)
        return rows


def key_words(key: PRNGKeyArray) -> Any:
    """The integers of a random key of either kind."""
    return jr.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _rows(x, index):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x[index]
    return x.at[index].get(mode="promise_in_bounds")


@jax.jit
def _all_finite(leaves):
    return trees.all_finite(leaves)
