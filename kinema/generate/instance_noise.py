"""Noise of a prescribed size on the data, for fits whose likelihood degenerates on a set of few dimensions.

    x~ = x + std e,   e ~ N(0, I),   std = n^(-b / (2 (b + t)))

balances what the noise blurs, of order std, against the error of the fit at that noise, n^(-b/(2b+t)) std^(-t/(2b+t)),
for a map of smoothness b on t dimensions. The dimension of the data does not enter.

Reference: Chae, Kim, Kim & Lin, 2023.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError


class InstanceNoise(eqx.Module):
    """Adds std e to every sample, `std` in the units of what it is given.

    `mode` "fresh" draws e anew at every step: `noise(key, x)`, which is also an `augment` of `Denoising`. "fixed" draws
    it once: `noise.once(data)` before training, after which `noise(key, x)` is x. Call both and either mode is served.

    >>> noise = InstanceNoise(0.1, "fixed")
    >>> x = jnp.zeros((4, 2))
    >>> bool(noise.once(x, key=jr.key(0)).std() > 0), noise(jr.key(0), x[0]).tolist()
    (True, [0.0, 0.0])

    Raises:
        InputError: std negative or not finite; another mode.
    """

    std: Float[Array, ""]
    mode: str = eqx.field(static=True)

    def __init__(self, std: Any, mode: str = "fresh"):
        if mode not in ("fresh", "fixed"):
            raise InputError(f"mode must be 'fresh' or 'fixed', got {mode!r}")
        if not isinstance(std, Tracer) and not (np.ndim(std) == 0 and 0 <= float(std) < np.inf):
            raise InputError(f"std must be a finite number >= 0, got {std}")
        self.std, self.mode = jnp.asarray(std, float), mode

    def __call__(self, key: PRNGKeyArray, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x if self.mode == "fixed" else self._add(key, x)

    def once(self, data: Float[Array, "..."], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """All data with the one draw of mode "fixed"; in mode "fresh" the data as they are."""
        return data if self.mode == "fresh" else self._add(key, data)

    def _add(self, key, x):
        return x + self.std.astype(x.dtype) * jr.normal(key, x.shape, x.dtype)


def recommended_noise(n: int, smoothness: float | int = 2, dim: float | int = 1, scale: float | int = 1) -> float:
    """scale n^(-b/(2(b+t))) in units of the data's standard deviation: n samples of a map of smoothness b on t = `dim`.

    The theory leaves `scale` open; try 1/4 to 2 with `select_noise`. Data whose own noise is larger need no more.

    >>> round(recommended_noise(200, 2, 1), 4)
    0.171

    Raises:
        InputError: n < 2; smoothness, dim or scale not positive.
    """
    if n < 2:
        raise InputError(f"n must be at least 2 samples, got {n}")
    for name, value in {"smoothness": smoothness, "dim": dim, "scale": scale}.items():
        if not value > 0:
            raise InputError(f"{name} must be positive, got {value}")
    return float(scale * n ** (-smoothness / (2 * (smoothness + dim))))


class NoiseChoice(NamedTuple):
    """`std`, the candidate of least mean score, and the `scores (candidates, folds)`."""

    std: float
    candidates: tuple[float, ...]
    scores: np.ndarray


def select_noise(
    candidates: Iterable[float],
    data: Float[Array, "n d"],
    metric: Any,
    fit: Callable[[Array, float, PRNGKeyArray], Array],
    *,
    folds: int = 2,
    key: PRNGKeyArray,
) -> NoiseChoice:
    """The noise whose samples lie nearest to held-out data.

    `fit(rows, std, key)` trains with that noise and returns samples `(m, d)` without it; `metric(samples, held_out)` is
    a distance of two sets, such as `kinema.verify.energy_distance`. A likelihood is refused: it always prefers less
    noise. The candidates of a fold share its key.

    >>> rows = jnp.arange(8.0)[:, None]
    >>> gap = lambda x, y: abs(x.mean() - y.mean())
    >>> select_noise([0.0, 3.0], rows, gap, lambda rows, std, key: rows + std, key=jr.key(0)).std
    0.0

    Raises:
        InputError: no candidates, or one that is negative; a metric that is not a distance; fewer than two folds, or
            more than samples; a score that is not finite.
    """
    levels = tuple(float(one) for one in candidates)
    if not levels or not all(0 <= one < np.inf for one in levels):
        raise InputError(f"candidates must be one or more finite numbers >= 0, got {list(levels)}")
    name = getattr(getattr(metric, "__func__", metric), "__name__", "")
    if not callable(metric) or "log_prob" in name:
        raise InputError(
            "metric must be a distance (samples, held_out) -> number, such as kinema.verify.energy_distance; a "
            f"likelihood always prefers less noise; got {metric!r}"
        )
    if not 2 <= folds <= len(data):
        raise InputError(f"folds must be from 2 to the number of samples, {len(data)}, got {folds}")
    key_order, key_fits = jr.split(key)
    parts = np.array_split(np.asarray(jr.permutation(key_order, len(data))), folds)
    scores = np.empty((len(levels), folds))
    for j, held in enumerate(parts):
        rows = np.concatenate(parts[:j] + parts[j + 1 :])
        for i, std in enumerate(levels):
            scores[i, j] = np.asarray(metric(fit(data[rows], std, jr.fold_in(key_fits, j)), data[held]), float)
            if not np.isfinite(scores[i, j]):
                raise InputError(f"metric must give finite numbers, got {scores[i, j]} at noise {std:g}")
    return NoiseChoice(levels[int(scores.mean(1).argmin())], levels, scores)
