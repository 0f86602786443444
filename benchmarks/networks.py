"""The same small networks for both sides, from the same numbers."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch


def weights(sizes: tuple[int, ...], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=(m, n)).astype(np.float32) / m**0.5, 0.1 * random.normal(size=n).astype(np.float32))
        for m, n in pairwise(sizes)
    ]


class Denoiser(eqx.Module):
    """`net(x, signal)`: the signal enters as one more number."""

    layers: list

    def __call__(self, x, signal, cond=None):
        h = jnp.append(x, 0.1 * signal)
        for w, b in self.layers[:-1]:
            h = jax.nn.silu(h @ w + b)
        return h @ self.layers[-1][0] + self.layers[-1][1]


class Field(eqx.Module):
    """A tanh network on a batch: a drift."""

    layers: list

    def __call__(self, t, x, args=None):
        for w, b in self.layers[:-1]:
            x = jnp.tanh(x @ w + b)
        return x @ self.layers[-1][0] + self.layers[-1][1]


def in_jax(kind, numbers):
    return kind([(jnp.asarray(w), jnp.asarray(b)) for w, b in numbers])


def in_torch(numbers, activation: type[torch.nn.Module]) -> torch.nn.Sequential:
    layers = []
    for w, b in numbers:
        linear = torch.nn.Linear(*w.shape)
        linear.weight.data, linear.bias.data = torch.tensor(w.T.copy()), torch.tensor(b)
        layers += [linear, activation()]
    return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)
