"""Increments of a Brownian tree over many steps at once: what neighbouring times share is drawn once.

A `VirtualBrownianTree` answers a time by a descent from its root, with random numbers of every level on the way. But
its path is a sum over all nodes above the time, of the random numbers there times shapes that are known (Lévy &
Ciesielski): so here sorted times descend together, and the nodes above them, each once, are drawn and summed a chunk at
a time. That takes about four draws a step however deep the tree is, in place of two for every level. The path is that
of the tree.
[Jelinčič, Foster & Kidger 2024; Foster 2020, theorems 6.1.4 and 6.1.6]
"""

from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

KNOWN = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea)  # what of a path can be made here
_CHUNK = 32  # nodes drawn at once, at most
_ROOT, _SPLIT = -2, -1  # kinds of nodes; a leaf is named by the number of its time


class _Nodes(eqx.Module):
    """Nodes not yet drawn, or one: keys of their draws, and the intervals that they are in the middle of."""

    keys: Any  # (nodes, draws)
    begin: Float[Array, "*nodes"]
    width: Float[Array, "*nodes"]
    kind: Int[Array, "*nodes"]


def increments(tree: diffrax.VirtualBrownianTree, times: Float[Array, " times"]) -> Any:
    """What `tree.evaluate(times[i], times[i + 1], use_levy=True)` is for every i, on a leading axis.

    `times` must not decrease. For trees of a kind in `KNOWN`.
    """
    times = jax.lax.stop_gradient(eqxi.nondifferentiable(times, name="ts"))
    begin, span = jax.lax.stop_gradient((tree.t0, jnp.asarray(tree.t1 - tree.t0)))
    shapes, outer = jax.tree.flatten(tree.shape)
    with_area = tree.levy_area is diffrax.SpaceTimeLevyArea
    leaves = []
    for shape, key in zip(shapes, outer.flatten_up_to(tree.key)):
        real = jnp.finfo(shape.dtype).dtype
        unit, length = ((times - begin) / span).astype(real), span.astype(real)
        parts = _increments(key, shape, unit, tree.tol, with_area)
        leaves.append((length * jnp.diff(unit), *(jnp.sqrt(length) * part for part in parts)))
    return tree.levy_area(*(outer.unflatten(parts) for parts in zip(*leaves)))


def _increments(key, shape, times, resolution, with_area):
    """W and, if asked for, area of each step between sorted times in [0, 1], (1 or 2, steps, *shape)."""
    count, draws = len(times), 1 + with_area
    chunk = min(_CHUNK, 2 * count)
    own, leaves = jnp.arange(count), (times < times[-1]).sum() + 1  # times that are the last again have no leaf
    key, *first = jr.split(key, 1 + draws)

    def level_on(carry):
        level, path, begin, place, nodes, waiting, sums, _ = carry
        width = jnp.power(2.0, -level).astype(times.dtype)
        last = width <= resolution
        later, middle, earlier = jnp.moveaxis(jax.vmap(lambda key: jr.split(key, 3))(path), 1, 0)
        # the first time in each node; there may be too many, which the next level writes over
        example = jnp.where(last, own, jnp.minimum((place < own[:, None]).sum(1), count - 1))
        keys = jax.vmap(lambda i: jnp.where(last, path[i], middle[i]))(example)
        keys = jax.vmap(lambda key: jr.split(key, 2))(keys) if with_area else keys[:, None]
        kind = jnp.where(last, own, _SPLIT)
        new = _Nodes(keys, begin[example], jnp.full_like(begin, width), kind)
        nodes = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, waiting, 0), nodes, new)
        waiting = waiting + jnp.where(last, leaves, place[-1] + 1)
        ready = jnp.where(last, 1, chunk)
        nodes, waiting, sums = jax.lax.while_loop(lambda c: c[1] >= ready, draw, (nodes, waiting, sums))
        right = times > begin + width / 2
        half = 2 * place + right
        place = ((jnp.diff(half, prepend=half[:1]) != 0) & (own <= own[:, None])).sum(1)
        begin = jnp.where(right, begin + width / 2, begin)
        return level + 1, jax.vmap(jnp.where)(right, later, earlier), begin, place, nodes, waiting, sums, last

    def draw(carry):
        nodes, waiting, sums = carry
        now = jax.tree.map(lambda x: x[:chunk], nodes)
        z = jax.vmap(jax.vmap(lambda key: jr.normal(key, shape.shape, shape.dtype)))(now.keys)
        used = jnp.arange(chunk) < waiting
        shapes = jax.vmap(lambda node, is_used: jnp.where(is_used, _shape(node, times, leaves, with_area), 0))(
            now, used
        )
        weights = _of_steps(times, shapes).astype(shape.dtype)  # (nodes, draws, parts, steps)
        sums = sums + jnp.einsum("ndps,nd...->ps...", weights, z, precision="highest")
        return jax.tree.map(lambda x: jnp.roll(x, -chunk, 0), nodes), jnp.maximum(waiting - chunk, 0), sums

    room = (count + chunk,)
    keys = jnp.stack(first)
    nodes = _Nodes(
        jnp.broadcast_to(keys, (*room, *keys.shape)),
        jnp.zeros(room, times.dtype),
        jnp.ones(room, times.dtype),
        jnp.full(room, _ROOT),
    )
    path = jnp.broadcast_to(key, (count, *key.shape))
    sums = jnp.zeros((draws, count - 1, *shape.shape), shape.dtype)
    start = (jnp.asarray(0), path, jnp.zeros_like(times), jnp.zeros_like(own), nodes, jnp.asarray(1), sums, False)
    return jax.lax.while_loop(lambda carry: ~carry[-1], level_on, start)[-2]


def _shape(node, times, leaves, with_area):
    """What one unit of each draw of a node adds to W at the times and to its integral up to them.

    (draws, parts, times); in units of the whole span, so that W(1) has variance 1.
    """
    since = times - node.begin
    inside = (since > 0) & (times <= node.begin + node.width)
    split = jnp.where(inside, _of_split(since, node.width, with_area), 0)
    mine = node.kind == jnp.minimum(jnp.arange(len(times)), leaves - 1)
    leaf = jnp.where(mine, _of_leaf(since, node.width, with_area), 0)
    return jnp.where(node.kind == _ROOT, _of_root(times, with_area), jnp.where(node.kind == _SPLIT, split, leaf))


def _of_root(t, with_area):
    """What the whole span adds: a straight line, and with area a parabola."""
    if not with_area:
        return t[None, None]
    bend = 6 * t * (1 - t) / 12**0.5
    return jnp.stack([jnp.stack([t, t**2 / 2]), jnp.stack([bend, (3 * t**2 - 2 * t**3) / 12**0.5])])


def _of_split(since, width, with_area):
    """What the middle of an interval adds, `since` its begin: a hat, or with area two parabolas without integral."""
    half = width / 2
    if not with_area:
        return (jnp.sqrt(width) / 2 * (1 - jnp.abs(since - half) / half))[None, None]
    right = since > half
    x = jnp.where(right, since - half, since)

    def part(rise, first, second):
        """W rises by `rise` in the first half and falls by it in the second; areas in the halves."""
        area = jnp.where(right, second, first)
        start, growth = jnp.where(right, rise, 0), jnp.where(right, -rise, rise)
        w = start + x / half * growth + 6 * x * (half - x) / half**3 * area
        before = jnp.where(right, first + half * rise / 2, 0)
        return jnp.stack([w, before + (x / half) ** 3 * area + x * (start + w) / 2])

    z, n = jnp.sqrt(width) / 4, width / 4 * jnp.sqrt(width / 12)
    return jnp.stack([part(z, -width / 4 * z, -width / 4 * z), part(0.0, n, -n)])


def _of_leaf(since, width, with_area):
    """What is free at a time inside an interval of which W, and area, are known."""
    before = jnp.clip(since, 0, width)
    after = width - before
    if not with_area:
        return jnp.sqrt(before * after / width)[None, None]
    cubes = jnp.sqrt(before**3 + after**3)
    a, b = (jnp.sqrt(before * after) * x**3 / (2 * width * cubes) for x in (before, after))
    w = 2 * (a + b) / width
    c = jnp.sqrt(3 * (before * after) ** 3) / (6 * cubes)
    return jnp.stack([jnp.stack([w, before * w / 2 - a]), jnp.stack([jnp.zeros_like(c), c])])


def _of_steps(times, values):
    """From W, and its integral, at the times (..., parts, times) to W, and area, of the steps between."""
    w = values[..., 0, :]
    moved = jnp.diff(w)
    if values.shape[-2] == 1:
        return moved[..., None, :]
    length = jnp.diff(times)
    area = jnp.diff(values[..., 1, :]) - length * (w[..., 1:] + w[..., :-1]) / 2
    apart = length > jnp.finfo(length.dtype).eps
    return jnp.stack([moved, jnp.where(apart, area / jnp.where(apart, length, 1), 0)], -2)
