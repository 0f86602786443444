"""The objective of paths between two data sets: plain regression of both outputs, with antithetic noise.

    loss = E_t (|f(x_t) - (a' x1 + b' x0)|^2 + |e(x_t) - z|^2) / dim,   x_t = a x1 + b x0 + s z

x0 and x1 of a batch are paired by a *coupling*. z and -z share the rest of a draw: it costs two calls of the network,
and cancels the noise of a velocity whose rate s' is unbounded at the ends.

Reference: Albergo, Boffi, Vanden-Eijnden 2023; Tong et al. 2023 (minibatch optimal transport).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PyTree

from kinema.errors import InputError, choose
from kinema.generate.fields import Heads, Moments
from kinema.generate.generator import AbstractGenerator
from kinema.generate.objective.weighting import QUANTILES, draw_times, named_times


def paired(key, x0: PyTree, x1: PyTree) -> Int[Array, " n"]:
    """Row i of x0 with row i of x1, as the batch has them."""
    return jnp.arange(len(jax.tree.leaves(x1)[0]))


def independent(key, x0: PyTree, x1: PyTree) -> Int[Array, " n"]:
    """Any row of x0 with any of x1."""
    return jr.permutation(key, len(jax.tree.leaves(x1)[0]))


def optimal_transport(key, x0: PyTree, x1: PyTree) -> Int[Array, " n"]:
    """The pairs of least total squared distance in the batch, by the Hungarian algorithm: n^3 in the batch size."""
    first, second = (
        jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], -1) for tree in (x0, x1)
    )
    cost = (first**2).sum(-1)[None] + (second**2).sum(-1)[:, None] - 2 * second @ first.T
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros_like(columns).at[rows].set(columns)


COUPLINGS = {"paired": paired, "independent": independent, "optimal-transport": optimal_transport}
"""(key, x0, x1) -> the row of x0 for every row of x1, by name."""


class Interpolating(eqx.Module):
    """The objective `(generator, batch, key) -> (loss, metrics)` for paths with a random endpoint.

    A batch is a dict of `x1 (n, ...)`, `x0` of the same shape and, where used, `cond`. `coupling` is a name of
    `COUPLINGS` or a function (key, x0, x1) -> the row of x0 for every row of x1; `times` and `quantiles` are as for
    `Denoising`; `antithetic` takes every z with -z. The metrics hold the loss of each
    output by its name.

    Raises:
        InputError: an unknown name; x0 missing or of another shape than x1; a path without a random endpoint.
    """

    times: str | Callable = "uniform"
    quantiles: str = "stratified"
    coupling: str | Callable = "independent"
    antithetic: bool = True

    def __check_init__(self):
        named_times(self.times)
        choose(QUANTILES, self.quantiles, "way to draw quantiles")
        _coupling(self.coupling)

    def __call__(self, generator: AbstractGenerator, batch, key) -> tuple[Float[Array, ""], dict[str, Array]]:
        path = generator.path
        if path.origin != "endpoint":
            raise InputError(f"{type(path).__name__} has no random endpoint; train it with Denoising")
        if not isinstance(batch, dict) or not {"x0", "x1"} <= batch.keys():
            raise InputError("a batch must be a dict with x0 and x1, the two ends of the path")
        x0, x1 = batch["x0"], batch["x1"]
        shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (x0, x1)]
        if shapes[0] != shapes[1]:
            raise InputError(f"x0 and x1 must have the same shapes, got {shapes[0]} and {shapes[1]}")
        n = shapes[1][0][0]
        key_times, key_pairs, key_noise = jr.split(key, 3)
        t = draw_times(named_times(self.times), path, key_times, n, self.quantiles)
        rows = _coupling(self.coupling)(key_pairs, x0, x1)
        samples = batch | {"x0": jax.tree.map(lambda leaf: leaf[rows], x0)}
        losses = jax.vmap(lambda k, time, sample: self.one(generator, k, time, sample))(
            jr.split(key_noise, n), t, samples
        )
        means = {name: loss.mean() for name, loss in losses.items()}
        return sum(means.values(), jnp.zeros(())), means

    def one(self, generator: AbstractGenerator, key, t, sample: dict[str, PyTree]) -> dict[str, Float[Array, ""]]:
        """The loss of every output for one pair at time t."""
        path, x1, x0 = generator.path, sample["x1"], sample["x0"]
        names = (generator.predicts,) if isinstance(generator.predicts, str) else generator.predicts
        z, moments = path.noise.sample(key, x1), Moments.at(path, t)
        size = sum(leaf.size for leaf in jax.tree.leaves(x1))
        totals = dict.fromkeys(names, jnp.zeros(()))
        signs = (1.0, -1.0) if self.antithetic else (1.0,)
        for sign in signs:
            noise = jax.tree.map(lambda leaf, sign=sign: sign * leaf, z)
            raw = generator.raw(t, path.join(t, x1, noise, x0).x, sample.get("cond"))
            for name, found in zip(names, raw if isinstance(raw, Heads) else (raw,)):
                gap = jax.tree.map(jnp.subtract, found, _target(name, moments, x1, x0, noise))
                totals[name] += sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gap)) / size
        return {name: total / len(signs) for name, total in totals.items()}


def _target(name: str, moments: Moments, x1: PyTree, x0: PyTree, z: PyTree) -> PyTree:
    if name == "data":
        return x1
    if name == "noise":
        return z
    if name == "score":
        return jax.tree.map(lambda noise: -noise / moments.s, z)
    transport = jax.tree.map(lambda end, start: moments.da * end + moments.db * start, x1, x0)
    if name == "transport":
        return transport
    rate = jnp.where(moments.s > 0, moments.s_ds / jnp.where(moments.s > 0, moments.s, 1.0), 0.0)
    return jax.tree.map(lambda mean, noise: mean + rate * noise, transport, z)


def _coupling(coupling: str | Callable) -> Callable:
    return choose(COUPLINGS, coupling, "coupling") if isinstance(coupling, str) else coupling
