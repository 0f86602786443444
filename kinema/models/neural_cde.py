"""Neural controlled differential equations: a hidden state driven by an irregular series, dz = field(z) dX.

X is a path through the series with time as its first channel, so any sampling, and missing values, are the same to the
model. The log-ODE form drives z by log-signatures of windows instead: few long steps for long series.

[Kidger, Morrill, Foster & Lyons 2020; Morrill, Salvi, Kidger & Foster 2021 (log-ODE)]
"""

import itertools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_positive
from kinema.models.layers import Linear
from kinema.models.neural_ode import VectorField, lipswish

SCHEMES = ("hermite", "linear")


class ControlPath(eqx.Module):
    """A path X(t) in (channels,) through the points at `ts`, as `make_path` builds it.

    `slope` is its derivative; at a frame, where it may jump, the one before unless `left` is False.
    """

    ts: Float[Array, " frames"]
    points: Float[Array, "frames channels"]
    interpolation: diffrax.AbstractGlobalInterpolation

    def __call__(self, t: Any) -> Float[Array, " channels"]:
        return self.interpolation.evaluate(t)

    def slope(self, t: Any, left: bool = True) -> Float[Array, " channels"]:
        return self.interpolation.derivative(t, left)


def make_path(
    ts: Float[Array, " frames"],
    values: Float[Array, "..."],
    mask: Any = None,
    *,
    scheme: str = "hermite",
    counts: bool = False,
) -> ControlPath:
    """The path through one series: time, the values, and with `counts` the share of frames observed so far of each.

    A value that is NaN, or False in `mask` (frames, features), was not observed: the last one is carried forward. So
    the path looks ahead to the next frame and no further, by "hermite" (smooth, backward differences) as by "linear".
    A series that ends early is padded with NaN.

    >>> path = make_path(jnp.array([0.0, 1.0, 3.0]), jnp.array([[1.0], [jnp.nan], [2.0]]), scheme="linear")
    >>> path.points.tolist(), path.slope(2.0).tolist()
    ([[0.0, 1.0], [1.0, 1.0], [3.0, 2.0]], [1.0, 0.5])

    Raises:
        InputError: ts does not increase or holds fewer than two times; a first row that is not complete; shapes that
            do not fit; unknown scheme.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if ts.ndim != 1 or len(ts) < 2 or values.ndim != 2 or len(values) != len(ts):
        raise InputError(f"ts must be (frames,) and values (frames, features), got {ts.shape} and {values.shape}")
    seen = jnp.isfinite(values)
    if mask is not None:
        if jnp.shape(mask) != values.shape:
            raise InputError(f"mask must have the shape of values, {values.shape}, got {jnp.shape(mask)}")
        seen &= jnp.asarray(mask, bool)
    if not isinstance(ts, Tracer) and not (np.diff(np.asarray(ts)) > 0).all():
        raise InputError("ts must increase")
    incomplete = ~seen[0].all()
    if isinstance(incomplete, Tracer):
        values = eqx.error_if(values, incomplete, "the first row of a series must be observed in every feature")
    elif incomplete:
        raise InputError("the first row of values must be observed in every feature: there is nothing to carry forward")
    latest = jax.lax.cummax(jnp.where(seen, jnp.arange(len(ts))[:, None], 0), axis=0)
    filled = jnp.take_along_axis(values, latest, axis=0)
    shares = [jnp.cumsum(seen, axis=0) / len(ts)] if counts else []
    return _joined(ts, jnp.concatenate([ts[:, None], filled, *shares], axis=1), scheme)


def log_signatures(path: ControlPath, window: int) -> ControlPath:
    """The path whose increments are the log-signatures, to depth two, of windows of `window` frames of `path`.

    Its c (c + 1) / 2 channels are those of `path` and the areas between each two of them,
    A_ij = ½ ∫ (X_i dX_j - X_j dX_i) from the start of the window. The last window may be shorter.

    Raises:
        InputError: window not a positive integer.
    """
    check_positive(window=window)
    ends = np.minimum(np.arange(0, len(path.ts) - 1 + window, window), len(path.ts) - 1)
    parts = [_log_signature(path.points[a : b + 1]) for a, b in itertools.pairwise(ends)]
    start = jnp.concatenate([path.points[0], jnp.zeros(len(parts[0]) - path.points.shape[1])])
    return _joined(path.ts[ends], start + jnp.cumsum(jnp.stack([jnp.zeros_like(start), *parts]), axis=0), "linear")


class NeuralCDE(eqx.Module):
    """z(0) = start(X(0)), dz = field(z) dX with field(z) a bounded matrix, output = readout(z(T)).

    A law whose `args` is a `ControlPath`. Calling it solves with one Heun step a frame; `integrate` gives z at any
    times. For the log-ODE form give it paths of `log_signatures`, and their number of channels.

    >>> net = NeuralCDE(2, 1, key=jr.key(0))
    >>> net(make_path(jnp.linspace(0, 1, 5), jnp.ones((5, 1)))).shape
    (1,)

    Raises:
        InputError: sizes not positive; a path with other channels.
    """

    start: VectorField
    field: VectorField
    readout: Linear
    hidden: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 8,
        width: int = 64,
        depth: int = 1,
        key: PRNGKeyArray,
    ):
        check_positive(channels=channels, outputs=outputs, hidden=hidden)
        key_start, key_field, key_readout = jr.split(key, 3)
        sizes = {"width": width, "depth": depth, "activation": lipswish}
        self.start = VectorField(channels, hidden, **sizes, key=key_start)
        self.field = VectorField(hidden, hidden * channels, **sizes, bounded=True, key=key_field)
        self.readout = Linear(hidden, outputs, key=key_readout)
        self.hidden, self.channels = hidden, channels

    def drift(self, t: Any, x: Float[Array, " hidden"], args: ControlPath) -> Float[Array, " hidden"]:
        return self._pushed(x, args.slope(t))

    def __call__(self, path: ControlPath) -> Float[Array, " outputs"]:
        if path.points.shape[1] != self.channels:
            raise InputError(f"the path must have {self.channels} channels, got {path.points.shape[1]}")

        def step(z, times):
            # at a frame the slope of a path of straight lines jumps: after it at the start, before it at the end
            before, after = times
            dt = after - before
            first = self._pushed(z, path.slope(before, left=False))
            second = self._pushed(z + dt * first, path.slope(after))
            return z + dt / 2 * (first + second), None

        z, _ = jax.lax.scan(step, self.start(path.points[0]), (path.ts[:-1], path.ts[1:]))
        return self.readout(z)

    def _pushed(self, z, slope):
        return self.field(z).reshape(self.hidden, self.channels) @ slope


def _joined(ts, points, scheme) -> ControlPath:
    if scheme == "linear":
        return ControlPath(ts, points, diffrax.LinearInterpolation(ts, points))
    coefficients = diffrax.backward_hermite_coefficients(ts, points)
    return ControlPath(ts, points, diffrax.CubicInterpolation(ts, coefficients))


def _log_signature(points: Float[Array, "frames channels"]) -> Float[Array, " terms"]:
    """Increments, and signed areas between channels, of a path of straight lines."""
    steps = jnp.diff(points, axis=0)
    outer = (points[:-1] - points[0]).T @ steps
    return jnp.concatenate([points[-1] - points[0], ((outer - outer.T) / 2)[jnp.triu_indices(len(outer), 1)]])
