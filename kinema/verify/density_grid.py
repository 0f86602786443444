"""Densities of a generator's samples on a grid, without samples: noisy ones by a solver, the flow by its likelihood.

Where two samplers differ by less than the noise of 10^5 samples this still tells them apart. One and two dimensions.

The noisy law obeys dp/dt = -div(b p) + (w^2 / 2) lap p. Along each axis: exponentially fitted fluxes between cells and
implicit steps, so that mass is kept to rounding and no density is negative.

Reference: Scharfetter & Gummel 1969.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kinema.errors import InputError
from kinema.generate.fields import Moments
from kinema.generate.generator import AbstractGenerator
from kinema.verify.stepping import runge_kutta

SHORTER = 4  # implicit steps with one evaluation of the drift: they are of first order and cheap


def noisy_density(
    gen: AbstractGenerator,
    centres: Float[Array | np.ndarray, " m"],
    *,
    dim: int,
    steps: int = 400,
    span: tuple[float, float],
    noise_level: float = 1.0,
) -> Float[Array, "..."]:
    """Mass in each cell `(m,) * dim` of the samples of the reverse SDE from the path's source.

    `centres` are those of equal cells, the same on both axes; `span` is (first, last) log-SNR in `steps` equal steps.
    Cells a third of the smallest detail are enough. Nothing leaves the grid: let it hold both source and data.
    `noise_level` is a factor on the noise.

    Raises:
        InputError: dim other than 1 and 2; centres that are not equally spaced; steps or noise_level not positive; a
            span that does not rise.
    """
    centres = _centres(centres, dim)
    if steps < 1 or not span[0] < span[1] or not noise_level > 0:
        raise InputError(f"steps and noise_level must be positive and span must rise, got {steps=}, {span=}")
    return _march(gen, centres, dim, jnp.linspace(*span, steps + 1), jnp.asarray(float(noise_level)))


def flow_density(
    gen: AbstractGenerator,
    centres: Float[Array | np.ndarray, " m"],
    *,
    dim: int,
    steps: int = 100,
    span: tuple[float, float],
) -> Float[Array, "..."]:
    """Mass in each cell `(m,) * dim` of the samples of the probability flow, by change of variables at its centre.

    `centres` and `span` as in `noisy_density`; `steps` are Runge-Kutta's.

    Raises:
        InputError: as `noisy_density`.
    """
    centres = _centres(centres, dim)
    if steps < 1 or not span[0] < span[1]:
        raise InputError(f"steps must be positive and span must rise, got {steps=}, {span=}")
    return _pull(gen, cells(centres, dim), jnp.asarray(span), steps).reshape((len(centres),) * dim)


def grid_wasserstein(
    first: Float[Array | np.ndarray, "..."],
    second: Float[Array | np.ndarray, "..."],
    centres: Float[Array | np.ndarray, " m"],
    *,
    directions: int = 32,
) -> float:
    """Sliced W2 between two masses on one grid, over equally spaced `directions`; exact W2 in one dimension.

    Raises:
        InputError: shapes that differ or do not fit the grid; a mass that is negative or zero.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.shape != (len(centres),) * first.ndim or first.ndim not in (1, 2):
        raise InputError(
            f"both masses need shape (m,) or (m, m) with m={len(centres)}, got {first.shape}, {second.shape}"
        )
    if min(first.min(), second.min()) < 0 or not min(first.sum(), second.sum()) > 0:
        raise InputError("masses must not be negative, nor all zero")
    points = np.asarray(cells(jnp.asarray(centres), first.ndim), np.float64)
    if first.ndim == 1:
        return float(np.sqrt(_along(points[:, 0], first.ravel(), second.ravel())))
    angles = np.pi * (np.arange(directions) + 0.5) / directions
    ways = np.stack([np.cos(angles), np.sin(angles)], -1)
    return float(np.sqrt(np.mean([_along(points @ way, first.ravel(), second.ravel()) for way in ways])))


def cells(centres: Float[Array, " m"], dim: int) -> Float[Array, "cells dim"]:
    """Centres of all cells, last axis fastest."""
    return jnp.stack(jnp.meshgrid(*[centres] * dim, indexing="ij"), -1).reshape(-1, dim)


def _along(places: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Squared W2 of two weighted sets at the same places."""
    order = np.argsort(places)
    places = places[order]
    sums = [np.cumsum(mass[order]) / mass.sum() for mass in (first, second)]
    edges = np.unique(np.concatenate([[0.0], *sums]).clip(0, 1))
    middles = 0.5 * (edges[1:] + edges[:-1])
    at = [places[np.searchsorted(one, middles).clip(max=len(places) - 1)] for one in sums]
    return float(np.diff(edges) @ (at[0] - at[1]) ** 2)


@eqx.filter_jit
def _pull(gen: AbstractGenerator, points, span, steps: int):
    path = gen.path

    def slope(level, state):
        t = path.time_of_log_snr(level)
        moments = Moments.at(path, t)
        rate = moments.da / moments.a - moments.s_ds / moments.s**2

        def velocity(y):
            return gen(t, y).velocity / rate

        ways = jnp.eye(points.shape[1], dtype=points.dtype)
        v, slopes = jax.vmap(lambda way: jax.jvp(velocity, (state[0],), (way,)), out_axes=(None, 0))(ways)
        return v, jnp.trace(slopes)

    def one(x):
        source, gain = runge_kutta(slope, (x, jnp.zeros((), x.dtype)), span[1], span[0], steps)
        return path.source_log_prob(source) + gain

    logs = jax.lax.map(one, points, batch_size=4096)
    mass = jnp.exp(logs - logs.max())
    return mass / mass.sum()


@eqx.filter_jit
def _march(gen: AbstractGenerator, centres, dim: int, levels, noise_level):
    path, points, m = gen.path, cells(centres, dim), len(centres)
    width = centres[1] - centres[0]

    def fields(level):
        """Drift per unit of log-SNR at the centres, and the diffusion constant."""
        t = path.time_of_log_snr(level)
        moments, found = Moments.at(path, t), jax.vmap(lambda x: gen(t, x))(points)
        rate = moments.da / moments.a - moments.s_ds / moments.s**2
        spread = noise_level**2 * moments.s**2
        drift = found.velocity / rate + spread * found.score
        return jnp.moveaxis(drift.reshape((m,) * dim + (dim,)), -1, 0), spread

    def implicit(mass, drift, spread, step):
        """One step along the last axis."""
        face = 0.5 * (drift[..., 1:] + drift[..., :-1])
        peclet = face * width / spread
        right, left = _bernoulli(-peclet), _bernoulli(peclet)  # flux = (right p_i - left p_i+1) spread / width
        scale = step * spread / width**2
        none = jnp.zeros_like(mass[..., :1])
        lower = jnp.concatenate([none, -scale * right], -1)
        upper = jnp.concatenate([-scale * left, none], -1)
        out = jnp.concatenate([scale * right, none], -1) + jnp.concatenate([none, scale * left], -1)
        return jax.lax.linalg.tridiagonal_solve(lower, 1 + out, upper, mass[..., None])[..., 0]

    def body(mass, ends):
        here, there = ends
        drift, spread = fields(0.5 * (here + there))

        def short(_, mass):
            step = (there - here) / SHORTER
            mass = implicit(mass, drift[dim - 1], spread, step)
            return implicit(mass.T, drift[0].T, spread, step).T if dim == 2 else mass

        return jax.lax.fori_loop(0, SHORTER, short, mass), None

    logs = jax.vmap(path.source_log_prob)(points)
    mass = jnp.exp(logs - logs.max()).reshape((m,) * dim)
    return jax.lax.scan(body, mass / mass.sum(), (levels[:-1], levels[1:]))[0]


def _bernoulli(z):
    """z / (e^z - 1), 1 at 0."""
    small = jnp.abs(z) < 1e-3
    safe = jnp.where(small, 1.0, z)
    return jnp.where(small, 1 - z / 2 + z**2 / 12, safe / jnp.expm1(safe))


def _centres(centres, dim: int) -> Array:
    centres = jnp.asarray(centres, jnp.result_type(float))
    if dim not in (1, 2):
        raise InputError(f"dim must be 1 or 2, got {dim}")
    gaps = np.diff(np.asarray(centres, np.float64))
    if centres.ndim != 1 or len(centres) < 3 or not (gaps > 0).all() or not np.allclose(gaps, gaps.mean(), rtol=1e-3):
        raise InputError("centres must be at least 3 equally spaced, rising numbers")
    return centres
