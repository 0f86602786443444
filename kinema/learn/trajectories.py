"""Learn a law from trajectories: slopes first, then short windows, then whole series.

Slopes need no solver and bring a network near; windows start from observations, so that an early, wrong law cannot run
far from the data (multiple shooting); whole series last, for constants.   [Kidger 2022; Rackauckas et al. 2020]
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.motion import integrate
from kinema.motion.law import Law


class SlopeLoss(eqx.Module):
    """Mean of ((drift(t, x) - slope) / scale)² over rows {"t", "x", "slope"}, as `slopes` makes them."""

    scale: tuple[float, ...] = eqx.field(static=True, converter=lambda x: tuple(map(float, np.atleast_1d(x))))

    def __call__(self, law: Law, batch: PyTree, key: Any = None) -> tuple[Array, dict[str, Array]]:
        found = jax.vmap(lambda t, x: law.drift(t, x, None))(batch["t"], batch["x"])
        return jnp.mean(((found - batch["slope"]) / jnp.asarray(self.scale, found.dtype)) ** 2), {}


class TrajectoryLoss(eqx.Module):
    """Mean of ((solve - x) / scale)² over rows {"ts": (frames,), "x": (frames, d)}, each solved from its first frame.

    Numbers that are False in an optional "seen" of the shape of "x" do not count; the first frame counts always.
    `windows` makes such rows. `method`, `dt` and `adjoint` as for `integrate`; the step is fixed.
    """

    scale: tuple[float, ...] = eqx.field(static=True, converter=lambda x: tuple(map(float, np.atleast_1d(x))))
    dt: float = eqx.field(static=True)
    method: str | diffrax.AbstractSolver = eqx.field(static=True, default="heun")
    adjoint: str | diffrax.AbstractAdjoint = eqx.field(static=True, default="recursive")
    max_steps: int = eqx.field(static=True, default=1024)

    def __call__(self, law: Law, batch: PyTree, key: Any = None) -> tuple[Array, dict[str, Array]]:
        def one(ts, x, seen):
            solved = integrate(
                law, x[0], ts, method=self.method, dt=self.dt, adjoint=self.adjoint, max_steps=self.max_steps
            ).states
            gaps = jnp.where(seen, solved - x, 0) / jnp.asarray(self.scale, x.dtype)
            return jnp.sum(gaps[1:] ** 2), jnp.sum(seen[1:])

        total, count = jax.vmap(one)(batch["ts"], batch["x"], seen_in(batch))
        return total.sum() / jnp.maximum(count.sum(), 1), {}


def slopes(ts: Any, x: Any) -> dict[str, Float[Array, "..."]]:
    """Rows {"t", "x", "slope"} for `SlopeLoss` from series `x` (n, frames, d) at common times: central differences.

    The two ends of each series, whose differences are one-sided, are left out.

    >>> rows = slopes(jnp.arange(4.0), (jnp.arange(4.0) ** 2)[None, :, None])
    >>> rows["slope"].ravel().tolist()
    [2.0, 4.0]

    Raises:
        InputError: shapes do not fit, fewer than three frames, ts not increasing, x not finite.
    """
    ts, x = _series(ts, x)
    if len(ts) < 3 or not np.isfinite(x).all():
        raise InputError("slopes need at least three frames, all finite")
    rates = np.gradient(x, ts, axis=1)[:, 1:-1]
    rows = {"t": np.broadcast_to(ts[1:-1], x[:, 1:-1].shape[:2]).reshape(-1)}
    rows |= {"x": x[:, 1:-1].reshape(-1, x.shape[-1]), "slope": rates.reshape(-1, x.shape[-1])}
    return {name: jnp.asarray(value, float) for name, value in rows.items()}


def windows(ts: Any, x: Any, length: int, *, stride: int = 1) -> dict[str, Array]:
    """Rows {"ts": (m, length), "x": (m, length, d)} of `length` frames, a new one every `stride` frames.

    Times are those of the series, since a law may depend on time. Numbers that are NaN were not observed: they become
    0, "seen" tells, and windows with an incomplete first frame are left out.

    >>> {name: value.shape for name, value in windows(jnp.arange(5.0), jnp.ones((2, 5, 3)), 3).items()}
    {'ts': (6, 3), 'x': (6, 3, 3)}

    Raises:
        InputError: shapes do not fit, ts not increasing, length not within 2..frames, stride < 1; no window begins
            with a complete frame.
    """
    ts, x = _series(ts, x)
    if not 2 <= length <= len(ts) or stride < 1:
        raise InputError(f"length must be in 2..{len(ts)} and stride at least 1, got {length} and {stride}")
    starts = range(0, len(ts) - length + 1, stride)
    times = np.stack([ts[s : s + length] for s in starts])
    parts = np.stack([x[:, s : s + length] for s in starts], 1)
    parts, times = parts.reshape(-1, length, x.shape[-1]), np.tile(times, (len(x), 1))
    seen = np.isfinite(parts)
    if seen.all():
        return {"ts": jnp.asarray(times, float), "x": jnp.asarray(parts, float)}
    able = seen[:, 0].all(-1)
    if not able.any():
        raise InputError("no window begins with a frame that was observed in every number")
    kept = {"ts": times, "x": np.where(seen, parts, 0)}
    return {name: jnp.asarray(value[able], float) for name, value in kept.items()} | {"seen": jnp.asarray(seen[able])}


def seen_in(batch: PyTree) -> Array:
    """Which numbers of "x" count: "seen" of the batch, or all."""
    return batch["seen"] if "seen" in batch else jnp.ones(batch["x"].shape, bool)


def _series(ts, x):
    ts, x = np.asarray(ts, np.float64), np.asarray(x, np.float64)
    if ts.ndim != 1 or x.ndim != 3 or x.shape[1] != len(ts):
        raise InputError(f"x must have shape (n, frames, d) and ts (frames,), got {x.shape} and {ts.shape}")
    if not (np.diff(ts) > 0).all():
        raise InputError("ts must increase")
    return ts, x
