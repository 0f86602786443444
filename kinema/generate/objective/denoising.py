"""Denoising: the one training objective of every path.

    loss = E_t w(t) |m(x_t) - x1|^2 / dim,   x_t = a x1 + b x0 + s z

where m is the data prediction that the network's output means. Score matching, EDM and flow matching are choices of w
and of the law of t; what the network predicts is the generator's own affair.

Reference: Vincent 2011; Song et al. 2021; Karras et al. 2022; Lipman et al. 2023.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError, choose
from kinema.generate.fields import Heads, Moments, convert
from kinema.generate.generator import AbstractGenerator, centre
from kinema.generate.objective.weighting import QUANTILES, draw_times, named_times, named_weighting
from kinema.generate.path.path import Path


class Denoising(eqx.Module):
    """The objective `(generator, batch, key) -> (loss, metrics)` that `learn.fit` minimises.

    A batch is an array of data `(n, ...)` or a dict with `x1` and, where used, `cond` and `x0`. `weight` and `times`
    are names or functions of `kinema.generate.objective.weighting`; `quantiles` says how the times of a batch are drawn
    from their law, a name of its `QUANTILES`. `augment(key, x1) -> x1` acts on one sample.
    A second output, the score of a path whose noise is not normal, adds |s (score - true score)|^2 with weight 1.
    `unconditional` replaces the label by the null label with that probability, as classifier-free guidance needs.

    Raises:
        InputError: an unknown name; `unconditional` outside [0, 1), without `null` or without labels.
    """

    weight: str | Callable = "noise"
    times: str | Callable = "uniform"
    quantiles: str = "stratified"
    augment: Callable | None = None
    unconditional: float = 0.0
    null: int | None = None

    def __check_init__(self):
        named_weighting(self.weight)
        named_times(self.times)
        choose(QUANTILES, self.quantiles, "way to draw quantiles")
        if not 0 <= self.unconditional < 1:
            raise InputError(f"unconditional must be in [0, 1), got {self.unconditional}")
        if self.unconditional > 0 and self.null is None:
            raise InputError("unconditional > 0 needs null, the label that means 'no label'")

    def __call__(self, generator: AbstractGenerator, batch, key) -> tuple[Float[Array, ""], dict[str, Array]]:
        batch = batch if isinstance(batch, dict) and "x1" in batch else {"x1": batch}
        if generator.path.origin == "endpoint":
            raise InputError(f"{type(generator.path).__name__} has a random endpoint; train it with Interpolating")
        n = jax.tree.leaves(batch["x1"])[0].shape[0]
        key_times, key_samples = jr.split(key)
        t = draw_times(named_times(self.times), generator.path, key_times, n, self.quantiles)
        losses = jax.vmap(lambda k, time, sample: self.one(generator, k, time, sample))(
            jr.split(key_samples, n), t, batch
        )
        return losses.mean(), {}

    def one(self, generator: AbstractGenerator, key, t, sample: dict[str, PyTree]) -> Float[Array, ""]:
        """The loss of one sample at time t."""
        key_noise, key_drop, key_augment = jr.split(key, 3)
        x1, cond, x0 = sample["x1"], sample.get("cond"), sample.get("x0")
        if self.augment is not None:
            x1 = self.augment(key_augment, x1)
        if self.unconditional > 0:
            if cond is None or self.null is None:
                raise InputError("unconditional > 0 needs labels: a batch is a dict with x1 and cond")
            cond = jnp.where(jr.bernoulli(key_drop, self.unconditional), self.null, cond)
        noised = generator.path.perturb(key_noise, t, x1, x0)
        moments = Moments.at(generator.path, t)
        raw = generator.raw(t, noised.x, cond, x0)
        predicts = generator.predicts if isinstance(generator.predicts, str) else generator.predicts[0]
        first = raw.first if isinstance(raw, Heads) else raw
        to_data = convert(predicts, "data", moments, generator.sigma_data)
        # The gap in the network's own units times Q: no cancellation where the data part of x is small.
        wanted = _own_units(generator.path, predicts, to_data, noised, moments, x0)
        weight = named_weighting(self.weight)(moments, generator.sigma_data)
        loss = weight * to_data.Q**2 * _square(first, wanted)
        if isinstance(raw, Heads):
            score = jax.tree.map(lambda leaf: leaf / moments.s, generator.path.noise.score(noised.z))
            loss = loss + moments.s**2 * _square(raw.second, score)
        return loss / sum(leaf.size for leaf in jax.tree.leaves(x1))


def flow_matching(**options: Any) -> Denoising:
    """Flow matching: the loss of the velocity, times uniform."""
    defaults: dict[str, Any] = {"weight": "velocity", "times": "uniform"}
    return Denoising(**defaults | options)


def edm(**options: Any) -> Denoising:
    """The loss of Karras et al. (2022): unit weight on the preconditioned residual, log-normal noise levels."""
    defaults: dict[str, Any] = {"weight": "residual", "times": "log-normal-noise"}
    return Denoising(**defaults | options)


def _square(one: PyTree, other: PyTree) -> Float[Array, ""]:
    return sum((jnp.sum((f - g) ** 2) for f, g in zip(jax.tree.leaves(one), jax.tree.leaves(other))), jnp.zeros(()))


def _own_units(path: Path, predicts: str, to_data, noised, moments: Moments, x0) -> PyTree:
    """What the network should have returned: the field it predicts, at the known data and noise."""
    if predicts == "data":
        return noised.x1
    if predicts == "noise":
        return noised.z
    if predicts == "score":
        return jax.tree.map(lambda z: -z / moments.s, noised.z)
    if predicts == "velocity":
        return jax.tree.map(lambda x1, z: moments.da * x1 + moments.s_ds / moments.s * z, noised.x1, noised.z)
    y = centre(path, noised.x, moments.b, x0)
    return jax.tree.map(lambda data, state: (data - to_data.P * state) / to_data.Q, noised.x1, y)
