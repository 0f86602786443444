"""Changing a model in the middle of a run, and carrying what the optimizer knows along.

A transform says of every new leaf which slices of which old leaves it was made of. If w' = factor w and the function of
the model stays the same, gradients are g' = g / factor; a moment of degree k in the gradient goes by factor^-k, the
average of the weights by factor.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from kinema.errors import InputError, unknown
from kinema.learn.step import LearnState, begin
from kinema.learn.trainable import Trainable, Where
from kinema.motion import trees

WHOLE = (Ellipsis,)


class Piece(NamedTuple):
    """new[put] = factor * old[take] of the old leaf `source`.

    `take` and `put` index as NumPy does. `factor` is a number or an array that broadcasts to old[take]; gradients go by
    `gradient_factor`, 1 / factor if None.

    >>> Piece("w", take=np.s_[:1], put=np.s_[2:], factor=0.5).power(2)  # what a second moment is multiplied by
    np.float64(4.0)
    """

    source: str
    take: Any = WHOLE
    put: Any = WHOLE
    factor: Any = 1.0
    gradient_factor: Any = None

    def power(self, degree: int) -> Any:
        """What a quantity of that degree in the gradient is multiplied by."""
        factor = np.asarray(self.factor) if self.gradient_factor is None else 1 / np.asarray(self.gradient_factor)
        return factor ** float(-degree)


class Correspondence(NamedTuple):
    """The pieces of every new leaf by its name; a leaf that is not listed is the old leaf of that name.

    A leaf with no pieces is new altogether. `Correspondence()`: nothing changed but, perhaps, which leaves learn.

    >>> Correspondence({"w": [Piece("w", put=np.s_[:2]), Piece("w", put=np.s_[2:])]}).of("bias")
    (Piece(source='bias', take=(Ellipsis,), put=(Ellipsis,), factor=1.0, gradient_factor=None),)
    """

    pieces: Mapping[str, Sequence[Piece]] = {}

    def of(self, name: str) -> Sequence[Piece]:
        """The pieces of one leaf."""
        return self.pieces.get(name, (Piece(name),))


class TreeTransform(eqx.Module):
    """A change of a model's leaves or structure that knows where every new number came from.

    >>> class Doubled(TreeTransform):  # a unit beside each unit, equal to it
    ...     def __call__(self, model, *, key):
    ...         pieces = [Piece("w", put=np.s_[:2]), Piece("w", put=np.s_[2:])]
    ...         return {"w": jnp.concatenate([model["w"], model["w"]])}, Correspondence({"w": pieces})
    >>> rule, old = optax.adam(1e-2), {"w": jnp.array([1.0, 2.0])}
    >>> new, where = Doubled()(old, key=jr.key(0))
    >>> transplant(begin(rule, old), new, where, rule).ema["w"].tolist()
    [1.0, 2.0, 1.0, 2.0]
    """

    @abc.abstractmethod
    def __call__(self, model: PyTree, *, key: PRNGKeyArray) -> tuple[PyTree, Correspondence]:
        """(new model, where its leaves came from)."""


class Rebalance(TreeTransform):
    """Every hidden unit between two layers gets incoming and outgoing weights of equal norm.

    The unit's incoming weights and bias are multiplied by c = sqrt(|outgoing| / |incoming|), its outgoing weights
    divided by c. Between the layers stands a positively homogeneous activation (ReLU, leaky ReLU), so the function of
    the model stays what it was. `incoming`, `bias` and `outgoing` are leaf names; `axes` the axes of the two weights
    along which the units lie, as in `eqx.nn.Linear`. Units without weight on one side are left alone.

    >>> net = eqx.nn.MLP(2, 1, 8, 1, key=jr.key(0))
    >>> net, same = Rebalance("layers/0/weight", "layers/1/weight", bias="layers/0/bias")(net, key=jr.key(1))
    >>> sorted(same.pieces)
    ['layers/0/bias', 'layers/0/weight', 'layers/1/weight']

    Raises:
        InputError: a name that the model does not have, or sizes that differ along the axes.
    """

    incoming: str
    outgoing: str
    bias: str | None = None
    axes: tuple[int, int] = (0, 1)

    def __call__(self, model, *, key):
        leaves, names = trees.leaf_names(model), [self.incoming, self.outgoing, *([self.bias] if self.bias else [])]
        for name in names:
            if name not in leaves:
                raise InputError(unknown("leaf", name, leaves))
        first, second = (
            jnp.moveaxis(leaves[name], axis, 0).reshape(leaves[name].shape[axis], -1)
            for name, axis in zip(names, self.axes)
        )
        if len(first) != len(second):
            raise InputError(
                f"{self.incoming} has {len(first)} units on axis {self.axes[0]}, {self.outgoing} {len(second)}"
            )
        if self.bias:
            first = jnp.concatenate([first, leaves[self.bias].reshape(len(first), -1)], 1)
        ins, outs = jnp.linalg.norm(first, axis=1), jnp.linalg.norm(second, axis=1)
        live = (ins > 0) & (outs > 0)
        c = np.asarray(jnp.where(live, jnp.sqrt(jnp.where(live, outs, 1) / jnp.where(live, ins, 1)), 1))
        factors = {self.incoming: _along(c, leaves[self.incoming].ndim, self.axes[0])}
        factors[self.outgoing] = _along(1 / c, leaves[self.outgoing].ndim, self.axes[1])
        if self.bias:
            factors[self.bias] = _along(c, leaves[self.bias].ndim, 0)
        new = {name: leaves[name] * factor for name, factor in factors.items()}
        pieces = {name: (Piece(name, factor=factor),) for name, factor in factors.items()}
        return trees.replace_leaves(model, new), Correspondence(pieces)


def transplant(
    state: LearnState,
    model: PyTree,
    correspondence: Correspondence,
    optimizer: optax.GradientTransformation,
    *,
    trainable: Trainable | Where = None,
) -> LearnState:
    """The state of a run after its model became `model`: step, moments and average are carried along.

    `state.params` keep the values of `model`. What has no old counterpart, such as a leaf that did not learn before,
    starts as at the beginning of a run. `learn.fit(..., state=)` goes on from the result. The degree of each moment is
    found by giving the optimizer a gradient and its double, so any Optax optimizer will do.

    >>> rule, model = optax.adam(1e-2), {"a": jnp.ones(3), "b": jnp.zeros(2)}
    >>> state = transplant(begin(rule, {"a": model["a"], "b": None}), model, Correspondence(), rule)
    >>> sorted(trees.leaf_names(state.params))
    ['a', 'b']

    Raises:
        InputError: a piece of another shape than its place; state of the optimizer that cannot follow a rescaled or
            cut leaf (it is named).
    """
    params = (trainable if isinstance(trainable, Trainable) else Trainable(trainable)).split(model)[0]
    fresh = begin(optimizer, params, None if state.ema is None else 0.5)
    old, names = trees.leaf_names(state.params), list(trees.leaf_names(params))
    _check(correspondence, old, model)
    sources = {name: correspondence.of(name) for name in names if all(p.source in old for p in correspondence.of(name))}
    average = fresh.ema
    if state.ema is not None:
        before, after = trees.leaf_names(state.ema), trees.leaf_names(fresh.ema)
        moved = {name: _made(after[name], before, [(p, p.factor) for p in ps]) for name, ps in sources.items()}
        average = trees.replace_leaves(fresh.ema, moved)
    degrees = _degrees(optimizer, params) if any(_rescales(pieces) for pieces in sources.values()) else {}
    before, moved = trees.leaf_names(state.opt_state), {}
    for name, leaf in trees.leaf_names(fresh.opt_state).items():
        owner = _owner(name, leaf, params)
        same = before.get(name)
        if same is not None and same.shape == leaf.shape and owner not in correspondence.pieces:
            moved[name] = same
        elif owner in sources:
            moved[name] = _carried(name, leaf, owner, before, sources[owner], degrees.get(name, 0))
    return LearnState(fresh.params, average, trees.replace_leaves(fresh.opt_state, moved), state.step)


def _carried(name: str, leaf, owner: str, before: Mapping[str, Any], pieces: Sequence[Piece], degree: int | None):
    """One leaf of the optimizer's state, put together from the old ones beside it."""
    prefix = name.removesuffix(owner)
    beside = {p.source: before.get(name if owner == "." else prefix + p.source) for p in pieces}
    if any(part is None for part in beside.values()):
        return leaf
    if degree is None:
        raise InputError(f"state {name} of the optimizer is no power of the gradient: it cannot follow a rescaled leaf")
    try:
        return _made(leaf, beside, [(p, p.power(degree)) for p in pieces])
    except (ValueError, IndexError) as error:
        raise InputError(f"state {name} of the optimizer, of shape {leaf.shape}, cannot follow {owner}") from error


def _made(new, before: Mapping[str, Any], pieces: Sequence[tuple[Piece, Any]]):
    """A leaf put together from pieces of old ones, each times its factor."""
    for piece, factor in pieces:
        part = before[piece.source][piece.take]
        new = new.at[piece.put].set((jnp.asarray(factor, part.dtype) * part).astype(new.dtype))
    return new


def _degrees(optimizer: optax.GradientTransformation, params: PyTree) -> dict[str, int | None]:
    """For each leaf of the optimizer's state that belongs to a parameter: k if doubled gradients make it 2^k times."""

    def after(factor):
        state = optimizer.init(params)
        for seed in (0, 1):
            grads = trees.scale(trees.normal_like(jr.key(seed), params), 1e-3 * factor)
            _, state = optax.with_extra_args_support(optimizer).update(grads, state, params)
        return trees.leaf_names(state)

    found, one, two = {}, *jax.jit(lambda: (after(1.0), after(2.0)))()
    for name, leaf in one.items():
        if _owner(name, leaf, params) is not None:
            some = np.asarray(leaf != 0) if trees.is_inexact(leaf) else np.zeros(leaf.shape, bool)
            powers = np.log2(np.abs(np.asarray(two[name])[some] / np.asarray(leaf)[some]))
            degree = round(float(np.median(powers))) if some.any() else 0
            found[name] = degree if np.all(np.abs(powers - degree) < 1e-3) else None
    return found


def _owner(name: str, leaf, params: PyTree) -> str | None:
    """The parameter that a leaf of an optimizer's state belongs to: its name ends as the parameter's does."""
    owners = trees.leaf_names(params)
    if "." in owners:
        return "." if leaf.shape == owners["."].shape and leaf.shape else None
    return max((owner for owner in owners if f"/{name}".endswith(f"/{owner}")), key=len, default=None)


def _rescales(pieces: Sequence[Piece]) -> bool:
    return any(np.any(np.asarray(piece.power(1)) != 1) for piece in pieces)


def _along(values: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    return values.reshape([-1 if k == axis % ndim else 1 for k in range(ndim)]) if ndim else values.reshape(())


def _check(correspondence: Correspondence, old: Mapping[str, Any], model: PyTree) -> None:
    names = trees.leaf_names(model)
    for name, pieces in correspondence.pieces.items():
        if name not in names:
            raise InputError(unknown("leaf of the new model", name, names))
        for piece in pieces:
            shape = np.broadcast_shapes(np.shape(piece.factor), np.broadcast_to(0, names[name].shape)[piece.put].shape)
            if piece.source in old and math.prod(shape) != old[piece.source][piece.take].size:
                given = old[piece.source][piece.take].shape
                raise InputError(f"a piece of {name} has shape {shape}, its part of {piece.source} {given}")
