"""Networks with another number of channels in or out than the sample has: a known start joined on, two outputs."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Channels(eqx.Module):
    """A network whose last axis is wider than the sample's: `joined` samples go in, `outputs` come out.

    The input is padded with zeros to the network's width; the output is the first part of the network's, or a tuple of
    its first `outputs` parts.
    """

    net: Any
    joined: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    @property
    def embedding(self) -> Any:
        return self.net.embedding

    def __call__(self, x: Float[Array, "..."], signal, cond=None) -> Any:
        size = x.shape[-1] // self.joined
        padding = max(self.outputs - self.joined, 0) * size
        out = self.net(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]), signal, cond)
        parts = tuple(out[..., i * size : (i + 1) * size] for i in range(self.outputs))
        return parts[0] if self.outputs == 1 else parts
