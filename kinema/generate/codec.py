"""Codec: physical states to the array that a network sees, and back.

Trajectories of several named arrays of one shape are stacked on a last axis ({x, v} of shape (frames, bodies, axes)
become (frames, bodies, axes, 2)); then every channel is shifted and scaled to zero mean and unit variance.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError


class Codec(eqx.Module):
    """encoded = (stack(states) - mean) / std, one sample. `names` empty: the sample is a bare array."""

    mean: Float[Array, " channels"]
    std: Float[Array, " channels"]
    names: tuple[str, ...] = eqx.field(static=True, default=())

    @classmethod
    def fit(cls, data, *, channels: bool = True) -> "Codec":
        """The codec of a data set with one leading ensemble axis: an array, or a dict of arrays of one shape.

        `channels` scales every entry of the last axis by itself; otherwise one mean and one scale serve all.

        Raises:
            InputError: a dict whose arrays differ in shape; data that is empty, not finite or never varies.
        """
        names = tuple(sorted(data)) if isinstance(data, dict) else ()
        if names:
            shapes = {name: np.shape(data[name]) for name in names}
            if len(set(shapes.values())) > 1:
                raise InputError(f"data must be arrays of one shape to be stacked, got {shapes}")
        values = np.stack([np.asarray(data[name]) for name in names], -1) if names else np.asarray(data)
        if values.ndim < 2:
            raise InputError(f"data must have an ensemble axis and at least one more, got shape {values.shape}")
        if not values.size:
            raise InputError(f"data is empty: shape {values.shape}")
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise InputError(f"data must be finite, row {row} is not")
        over = tuple(range(values.ndim - 1)) if channels or names else None
        mean, std = values.mean(over, dtype=np.float64), values.std(over, dtype=np.float64)
        overall = values.std(dtype=np.float64)
        if not overall > 0:
            raise InputError(f"data must vary to be modelled, got the one value {values.flat[0]}")
        std = np.where(std > 1e-6 * overall, std, overall)
        wide = values.shape[-1:]
        mean, std = (jnp.asarray(np.broadcast_to(number, wide), jnp.float32) for number in (mean, std))
        return cls(mean, std, names)

    def encode(self, states: PyTree) -> Float[Array, "..."]:
        """Physical states to an array of about unit variance."""
        values = jnp.stack([states[name] for name in self.names], -1) if self.names else jnp.asarray(states)
        return (values - self.mean) / self.std

    def decode(self, encoded: Float[Array, "..."]) -> PyTree:
        """The physical states of an encoded array."""
        values = encoded * self.std + self.mean
        return {name: values[..., i] for i, name in enumerate(self.names)} if self.names else values
