"""Statistics of one's own generator for DPM-Solver-v3, from its network and data, in one call.

In X = x1 + kappa z, kappa = e^-lam, with the data prediction m and its total derivative m' along dX/dlam = m - X:

    l = 1 - E[diag dm/dX],    f = (1 - l) X - m,    f' = (1 - l)(m - X) - dl/dlam X - m'
    s = Cov(f, f') / Var(f),    b = E[f'] - s E[f]

The same data, noise and probes serve every lam, so that l is smooth and its derivative clean.

Reference: Zheng et al. 2023, who draw anew at every lam.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.generate.generator import AbstractGenerator
from kinema.generate.path.path import Path, in_float64
from kinema.generate.solver.grids import check_count
from kinema.generate.solver.model_statistics import ModelStatistics
from kinema.generate.solver.registry import LIMIT

SHAPES = ("full", "channel", "scalar")
FLAT = 1e-6  # of the mean variance of f: below it a coordinate has no slope to fit


def estimate_statistics(
    gen: AbstractGenerator,
    data: Float[Array, "rows *shape"] | np.ndarray,
    *,
    key,
    cond: PyTree | None = None,
    low: float | None = None,
    high: float | None = None,
    n: int = 240,
    k: int = 1024,
    shape: str = "full",
    diagonal: str = "hutchinson",
    smooth: float = 0.0,
    batch_size: int | None = None,
) -> ModelStatistics:
    """l, s and b at n + 1 log-SNRs from `low` to `high` (the path's ends, within +-7), by k points each.

    `data` is what the generator was trained on, as its network sees it; `cond` has a row for each. `shape`: one number
    for each coordinate, for each entry of the last axis, or for all. `diagonal`: one random probe a point, or "exact",
    for small samples. `smooth` is the width, in rows, of a Gaussian window over lam. `batch_size` points are carried at
    once. Costs about 6 n k network calls. k matters more than n; guided generators have statistics of their own.

    Example:
        >>> statistics = estimate_statistics(gen, data, key=key, n=8, k=16)
        >>> plan = solver.dpm_solver_v3(gen.path, grids.log_snr(gen.path, 6, high=6.0), statistics=statistics)

    Raises:
        InputError: data that is empty or not finite, or conditions of another length; a path with an origin; n or k
            below 2; low not below high or outside the path; an unknown shape or diagonal; `smooth` negative.
    """
    data = jnp.asarray(data, jnp.result_type(float))
    _check(gen, data, cond, n, k, shape, diagonal, smooth)
    lam, times = _levels(gen.path, low, high, n)
    x1, z, probes, cond = _draw(gen.path, data, cond, k, key)
    axes = {"full": (0,), "channel": tuple(range(max(x1.ndim - 1, 1))), "scalar": tuple(range(x1.ndim))}[shape]
    ends = (lam.astype(data.dtype), times.astype(data.dtype))
    rough = _linear(gen, *ends, x1, z, probes, cond, axes, diagonal == "exact", batch_size)
    linear = _smooth(np.asarray(rough, np.float64), smooth)
    slope = np.gradient(linear, lam, axis=0, edge_order=2)
    fit = (linear.astype(data.dtype), slope.astype(data.dtype))
    found = _regression(gen, *ends, *fit, x1, z, cond, axes, batch_size)
    return ModelStatistics(lam, linear, *(_smooth(np.asarray(one, np.float64), smooth) for one in found))


def _levels(path: Path, low: float | None, high: float | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n + 1 log-SNRs and the times that have them."""
    ends = in_float64(path.log_snr, [max(path.t_min, 0.0), min(path.t_max, 1.0)])[0]
    bottom, top = (max(ends[0], -LIMIT) if low is None else low), (min(ends[1], LIMIT) if high is None else high)
    if not bottom < top:
        raise InputError(f"low must be below high, got low={bottom}, high={top}")
    lam = np.linspace(bottom, top, n + 1)
    times = in_float64(path.time_of_log_snr, lam)[0]
    inside = (times >= -1e-9).all() and (times <= 1 + 1e-9).all()
    if not inside or not np.allclose(in_float64(path.log_snr, times)[0], lam, rtol=1e-6, atol=1e-6):
        raise InputError(
            f"low={bottom} to high={top} leaves the path, whose log-SNR goes from {ends[0]:.6g} to {ends[1]:.6g}"
        )
    return lam, times


@eqx.filter_jit
def _draw(path: Path, data: Array, cond: PyTree, k: int, key) -> tuple[Array, Array, Array, PyTree]:
    """k rows of the data, as many draws of noise and of signs, and the rows' conditions."""
    key_rows, key_noise, key_probe = jr.split(key, 3)
    rows = jr.randint(key_rows, (k,), 0, len(data))
    z = jax.vmap(lambda one: path.noise.sample(one, data[0]))(jr.split(key_noise, k))
    probes = jr.rademacher(key_probe, (k, *data.shape[1:]), data.dtype)
    return data[rows], z, probes, jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], cond)


def _prediction(gen: AbstractGenerator, t, X: Array, cond) -> Any:
    """The data prediction at x = a X."""
    return gen(t, gen.path.coefficients(t)[0] * X, cond).data


def _over(points: Callable, arguments: Any, batch_size: int | None):
    """A function of one point at all of them."""
    if batch_size is None:
        return jax.vmap(points)(arguments)
    return jax.lax.map(points, arguments, batch_size=batch_size)


@eqx.filter_jit
def _linear(gen, lam, times, x1, z, probes, cond, axes, exact: bool, batch_size: int | None) -> Array:
    """l at every lam."""

    def at(level):
        lam, t = level

        def point(arguments):
            x1, z, probe, cond = arguments
            X = x1 + jnp.exp(-lam) * z
            if exact:
                jacobian = jax.jacfwd(lambda X: _prediction(gen, t, X, cond).reshape(-1))(X)
                return jnp.diag(jacobian.reshape(X.size, X.size)).reshape(X.shape)
            return probe * jax.jvp(lambda X: _prediction(gen, t, X, cond), (X,), (probe,))[1]

        return 1 - _over(point, (x1, z, probes, cond), batch_size).mean(axes)

    return jax.lax.map(at, (lam, times))


@eqx.filter_jit
def _regression(gen, lam, times, linear, slope, x1, z, cond, axes, batch_size: int | None) -> tuple[Array, Array]:
    """s and b at every lam: the least squares fit of f' by f."""

    def at(level):
        lam, t, linear, slope = level
        rate = 1 / jax.jvp(gen.path.log_snr, (t,), (jnp.ones_like(t),))[1]  # dt/dlam

        def point(arguments):
            x1, z, cond = arguments
            X = x1 + jnp.exp(-lam) * z
            along = _prediction(gen, t, X, cond) - X
            m, m_rate = jax.jvp(lambda X, t: _prediction(gen, t, X, cond), (X, t), (along, rate))
            return (1 - linear) * X - m, (1 - linear) * along - slope * X - m_rate, X

        f, f_rate, X = _over(point, (x1, z, cond), batch_size)
        mean, mean_rate = f.mean(axes), f_rate.mean(axes)
        variance = ((f - mean) ** 2).mean(axes)
        covariance = ((f - mean) * (f_rate - mean_rate)).mean(axes)
        rounding = (8 * jnp.finfo(X.dtype).eps) ** 2 * (X**2).mean(axes)
        varies = variance > jnp.maximum(FLAT * variance.mean(), rounding)
        s = jnp.where(varies, covariance / jnp.where(varies, variance, 1.0), 0.0)
        return s, mean_rate - s * mean

    return jax.lax.map(at, (lam, times, linear, slope))


def _smooth(values: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian window over the rows, cut at the ends."""
    if width == 0:
        return values
    rows = np.arange(len(values))
    window = np.exp(-0.5 * ((rows[:, None] - rows) / width) ** 2)
    return np.tensordot(window / window.sum(1, keepdims=True), values, 1)


def _check(gen, data, cond, n: int, k: int, shape: str, diagonal: str, smooth: float) -> None:
    if gen.path.origin != "none" or "data" not in gen.fields:
        raise InputError(f"statistics are those of data in noise; {type(gen.path).__name__} has an origin as well")
    if data.ndim < 2 or not len(data) or not bool(jnp.isfinite(data).all()):
        raise InputError(f"data must be finite rows of samples (rows, ...), got shape {data.shape}")
    for leaf in jax.tree.leaves(cond):
        if len(leaf) != len(data):
            raise InputError(f"cond must have a row for each of data, {len(data)}, got {len(leaf)}")
    check_count("n", n - 1)
    check_count("k", k - 1)
    if shape not in SHAPES:
        raise InputError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    if diagonal not in ("hutchinson", "exact"):
        raise InputError(f"diagonal must be 'hutchinson' or 'exact', got {diagonal!r}")
    if not (np.isfinite(smooth) and smooth >= 0):
        raise InputError(f"smooth must not be negative, got {smooth}")
