"""Tree algebra: a PyTree of arrays as one vector, and its leaves by name.

Every function takes any PyTree, Equinox modules with functions and settings in them included. Sums and products act on
the inexact (floating or complex) arrays; every other leaf is passed through from the first tree. A `None` in the second
tree (as `eqx.filter_grad` and `eqx.partition` leave it) stands for zero.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Inexact, PRNGKeyArray, PyTree

from kinema.errors import InputError

T = TypeVar("T")
Scalar = Any  # a Python number or an array of shape ()


def leaf_names(tree: PyTree) -> dict[str, Any]:
    """Every array leaf by its path, in tree order: `{"layers/0/weight": array, ...}`.

    Arrays are JAX and NumPy arrays, random keys and `jax.ShapeDtypeStruct`; other leaves are left out. A tree that is
    one array is named ".".

    >>> import numpy as np
    >>> list(leaf_names({"a": [np.ones(2), "text"], "b": np.zeros(())}))
    ['a/0', 'b']

    Raises:
        InputError: two leaves have the same name (dictionary keys that hold "/").
    """
    return {name: leaf for name, leaf in named_leaves(tree) if is_array(leaf)}


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """All leaves, arrays or not, as (name, leaf) in tree order.

    Raises:
        InputError: two leaves have the same name.
    """
    pairs = [(_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise InputError(f"two leaves of the tree are named {name!r}; dictionary keys must not hold '/'")
        seen.add(name)
    return pairs


def replace_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """`tree` with the named leaves replaced; shapes and dtypes may change.

    Raises:
        InputError: a name that the tree does not have.
    """
    names = [name for name, _ in named_leaves(tree)]
    missing = sorted(set(leaves) - set(names))
    if missing:
        raise InputError(f"the tree has no leaf named {missing[0]!r}; it has {', '.join(names[:8])}")
    old, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [leaves.get(name, leaf) for name, leaf in zip(names, old)])


def below(table: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries of a table of leaf names that lie under `prefix`, named as in that subtree.

    >>> below({"ema/a/0": 1, "ema/b": 2, "params/b": 3}, "ema")
    {'a/0': 1, 'b': 2}
    """
    inside = {name.removeprefix(f"{prefix}/"): value for name, value in table.items() if name.startswith(f"{prefix}/")}
    return {_ROOT: table[prefix], **inside} if prefix in table else inside


def join(prefix: str, name: str) -> str:
    """The name in the whole tree of a leaf of the subtree under `prefix`; no prefix, no change."""
    return name if not prefix else prefix if name == _ROOT else f"{prefix}/{name}"


def is_array(leaf: Any) -> bool:
    """A JAX or NumPy array, a random key, or a `jax.ShapeDtypeStruct`."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def is_inexact(leaf: Any) -> bool:
    """An array of floating or complex numbers."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def map_inexact(f: Callable, tree: PyTree, *rest: PyTree) -> PyTree:
    """`f(x, *others)` on the inexact leaves; a leaf that is not inexact, or `None` in another tree, is kept."""

    def one(leaf, *others):
        if not is_inexact(leaf) or any(other is None for other in others):
            return leaf
        return f(leaf, *others)

    return jax.tree.map(one, tree, *rest, is_leaf=lambda leaf: leaf is None)


def zeros_like(tree: PyTree) -> PyTree:
    """The zero vector of the same structure."""
    return map_inexact(jnp.zeros_like, tree)


def normal_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """Independent standard normal numbers in place of every inexact leaf."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jr.split(key, max(len(leaves), 1))
    drawn = [jr.normal(k, x.shape, x.dtype) if is_inexact(x) else x for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(structure, drawn)


def scale(tree: PyTree, factor: Scalar) -> PyTree:
    """factor * x, in the dtype of x."""
    return map_inexact(lambda x: (factor * x).astype(x.dtype), tree)


def add(x: PyTree, y: PyTree) -> PyTree:
    """x + y, in the dtype of x."""
    return add_scaled(x, 1, y)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """x - y, in the dtype of x."""
    return add_scaled(x, -1, y)


def add_scaled(x: PyTree, factor: Scalar, y: PyTree) -> PyTree:
    """x + factor * y, in the dtype of x.

    >>> import numpy as np
    >>> add_scaled({"w": np.ones(2)}, 0.5, {"w": np.full(2, 4.0)})["w"].tolist()
    [3.0, 3.0]
    """
    return map_inexact(lambda a, b: (a + factor * b).astype(a.dtype), x, y)


def interpolate(x: PyTree, y: PyTree, weight: Scalar) -> PyTree:
    """x + weight * (y - x), in the dtype of x: x at weight 0, y at weight 1."""
    return map_inexact(lambda a, b: (a + weight * (b - a)).astype(a.dtype), x, y)


def dot(x: PyTree, y: PyTree) -> Inexact[Array, ""]:
    """Σ conj(x) y over all inexact leaves, summed in float32 or wider."""

    def one(a, b):
        wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
        return jnp.sum(jnp.conj(jnp.asarray(a, wide)) * jnp.asarray(b, wide))

    def leaf(a, b):
        return one(a, b) if is_inexact(a) and is_inexact(b) else None

    terms = jax.tree.leaves(jax.tree.map(leaf, x, y, is_leaf=lambda value: value is None))
    return sum(terms, start=jnp.zeros(()))


def norm(tree: PyTree) -> Inexact[Array, ""]:
    """Euclidean length sqrt(Σ |x|²) over all inexact leaves, summed in float32 or wider."""
    return jnp.sqrt(jnp.real(dot(tree, tree)))


def largest(tree: PyTree) -> Inexact[Array, ""]:
    """max |x| over all inexact leaves; 0 for an empty tree."""
    tops = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree) if is_inexact(x)]
    return jnp.max(jnp.stack([jnp.zeros(()), *tops]))


def size(tree: PyTree) -> int:
    """How many numbers the inexact leaves hold."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree) if is_inexact(x))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """True where no inexact leaf holds NaN or infinity; may be called inside compiled code."""
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if is_inexact(x)]
    return jnp.all(jnp.stack([jnp.asarray(True), *flags]))


def first_not_finite(tree: PyTree) -> tuple[str, int] | None:
    """(leaf name, row along its first axis) of the first NaN or infinity, or None. On the host, for error messages.

    Rows are looked at in blocks, so that an array mapped from disk is never held as a whole.
    """
    for name, leaf in leaf_names(tree).items():
        if not is_inexact(leaf):
            continue
        if leaf.ndim == 0:
            if not bool(jnp.isfinite(leaf)):
                return name, 0
            continue
        rows = max(1, _BLOCK * len(leaf) // max(leaf.size, 1))
        for start in range(0, len(leaf), rows):
            block = leaf[start : start + rows]
            bad = ~np.asarray(jnp.isfinite(block) if isinstance(block, jax.Array) else np.isfinite(block))
            if bad.any():
                return name, start + int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
    return None


_ROOT = "."
_BLOCK = 1 << 24  # numbers looked at together: 16 Mi bytes of flags


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or _ROOT
