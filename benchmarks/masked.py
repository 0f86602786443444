"""Masked diffusion: one sequence by first hitting beside two published samplers in PyTorch, at batch size 1.

The peers are written anew with the same small network. The ancestral one draws every token among its categories and
staying masked at every step, and calls the network when something changed (mdlm); the other is first hitting that draws
all tokens of a call and keeps one (bd3lms). Networks must agree on the same input first, then the samples: the mean log
probability of their tokens under the law that the network leans on, within four standard errors.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import torch

from benchmarks.harness import Row, compare
from kinema.generate.discrete.first_hitting import sample_masked
from kinema.generate.discrete.masking import MaskedModel

LENGTH, CATEGORIES, WIDTH, STEPS, JUDGED = 64, 2000, 32, 256, 12
LEANING = -np.log(np.arange(1, CATEGORIES + 1)) - np.log((1 / np.arange(1, CATEGORIES + 1)).sum())  # Zipf's law


def run(seconds: float = 3.0) -> list[Row]:
    weights = make_weights(np.random.default_rng(0))
    table, mixing, head, bias = map(jnp.asarray, weights)
    model, net = MaskedModel(Trunk(table, mixing), LENGTH, CATEGORIES, Head(head, bias)), in_torch(weights)
    same_networks(model, net)
    keys, random = iter(jr.split(jr.key(0), 100_000)), torch.Generator().manual_seed(0)

    def ours():
        return np.asarray(sample_masked(model, 1, key=next(keys)).x[0])

    rows = []
    for name, sampler, target in (("mdlm", by_steps, 20), ("bd3lms", one_by_one, 3)):
        theirs = partial(sampler, net, random)
        same_samples(ours, theirs, name)
        case = f"{LENGTH} of {CATEGORIES} tokens, masked diffusion"
        rows.append(compare(case, name, ours, theirs, target=target, seconds=seconds, tolerance=None))
    return rows


def make_weights(random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Table of symbols, mixing, and the head's weight and bias."""
    shapes = (CATEGORIES + 1, WIDTH), (WIDTH, WIDTH), (WIDTH, CATEGORIES)
    table, mixing, head = (random.normal(size=shape) / WIDTH**0.5 for shape in shapes)
    return tuple(np.asarray(one, np.float32) for one in (table, mixing, 0.5 * head, LEANING))


class Trunk(eqx.Module):
    """Features of a token: its symbol, and the mean over all tokens."""

    table: jax.Array
    mixing: jax.Array

    def __call__(self, x):
        h = self.table[x]
        return jnp.tanh(h + h.mean(0) @ self.mixing)


class Head(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, h):
        return h @ self.weight + self.bias


def in_torch(weights: tuple[np.ndarray, ...]):
    table, mixing, head, bias = map(torch.tensor, weights)

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        h = table[x]
        return torch.softmax(torch.tanh(h + h.mean(0) @ mixing) @ head + bias, -1)

    return probabilities


def draw(p: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The published draw: a race of clocks from uniform numbers of 24 bits."""
    clocks = 1e-10 - (torch.rand(p.shape, generator=random) + 1e-10).log()
    return (p / clocks).argmax(-1)


@torch.no_grad()
def by_steps(net, random: torch.Generator) -> np.ndarray:
    x, p = torch.full((LENGTH,), CATEGORIES), None
    for left in range(STEPS, 0, -1):
        p = net(x) if p is None else p
        both = torch.cat([p / left, torch.full((LENGTH, 1), 1 - 1 / left)], -1)
        new = torch.where(x == CATEGORIES, draw(both, random), x)
        if not torch.equal(new, x):
            p = None
        x = new
    return x.numpy()


@torch.no_grad()
def one_by_one(net, random: torch.Generator) -> np.ndarray:
    x = torch.full((LENGTH,), CATEGORIES)
    for masked in range(LENGTH, 0, -1):
        drawn = draw(net(x), random)
        chosen = (x == CATEGORIES).nonzero()[torch.randint(masked, (1,), generator=random)]
        x[chosen] = drawn[chosen]
    return x.numpy()


def same_networks(model: MaskedModel, net) -> None:
    random = np.random.default_rng(1)
    x = random.integers(CATEGORIES, size=LENGTH)
    mask = random.random(LENGTH) < 0.5
    ours = jnp.exp(model.conditionals(jnp.asarray(x), jnp.asarray(mask)))
    theirs = net(torch.tensor(np.where(mask, x, CATEGORIES))).numpy()
    apart = float(np.abs(ours - theirs).max() / theirs.max())
    if apart > 1e-4:
        raise AssertionError(f"networks differ by {apart:.2g}")


def same_samples(ours, theirs, name: str) -> None:
    found = [np.array([LEANING[sampler()].mean() for _ in range(JUDGED)]) for sampler in (ours, theirs)]
    (mine, others), error = (one.mean() for one in found), sum(one.var(ddof=1) / JUDGED for one in found) ** 0.5
    if abs(mine - others) > 4 * error:
        raise AssertionError(
            f"samples of Kinema and {name} differ: mean log p {mine:.3f} and {others:.3f} ± {error:.3f}"
        )
