"""The interpolant of least energy between two normal laws, beside the linear one and the exact Schrödinger bridge."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.generate import LightBridge, OptimalInterpolant, fit_optimal_interpolant
from kinema.report.charts import house
from kinema.report.picture import Picture

EPS, START, END = 0.6, 1.0, 0.2  # volatility and variances
SHARED = (np.sqrt(4 * START * END + EPS**2) - EPS) / 2  # covariance of the two ends under the bridge
TIMES = np.linspace(0, 1, 41)


class Bridged(NamedTuple):
    """Energy of the optimised interpolant, relative error of its drift, and its variance at `TIMES`."""

    energy: float
    error: float
    variances: np.ndarray


def variance(t, shared: float):
    """Of x_t, if the ends have the covariance `shared`."""
    return (1 - t) ** 2 * START + t**2 * END + (2 * shared + EPS) * t * (1 - t)


def energy(shared: float) -> float:
    """E int |u|^2 dt of the normal process with these variances, u its drift at volatility EPS, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    t = (nodes + 1) / 2
    rate = -2 * (1 - t) * START + 2 * t * END + (2 * shared + EPS) * (1 - 2 * t)
    return float(weights / 2 @ ((rate - EPS) ** 2 / 4 / variance(t, shared)))


def normal_ends(key, n: int) -> list[jax.Array]:
    """Rows of both laws with exactly their variances, which the energy feels."""
    sides = np.array(jr.normal(key, (2, n, 1)))
    sides -= sides.mean(1, keepdims=True)
    sides *= np.sqrt([START, END])[:, None, None] / sides.std(1, keepdims=True)
    return [jnp.asarray(side) for side in sides]


def bridged(steps: int, width: int, draws: int, key) -> Bridged:
    key_data, key_fit, key_test, key_energy = jr.split(key, 4)
    made = fit_optimal_interpolant(
        *normal_ends(key_data, 20_000), eps=EPS, width=width, steps=steps, key=key_fit
    ).bridge
    x0, x1 = normal_ends(key_test, draws)
    truth = LightBridge(jnp.zeros((1, 1)), SHARED, eps=EPS)
    error, variances = looked_at(made, truth, x0[:4000], x1[:4000])
    energies = [float(made.energy(x0, x1, key=k)) for k in jr.split(key_energy, 4)]
    return Bridged(float(np.mean(energies)), float(error), np.asarray(variances))


@eqx.filter_jit
def looked_at(made: OptimalInterpolant, truth: LightBridge, x0, x1):
    """Relative error of the drift over the exact law, and variance of x_t, at `TIMES`."""

    def at(t):
        x = jnp.sqrt(variance(t, SHARED)) * x0[:100]  # x0 has variance 1
        found, exact = (jax.vmap(law.drift, (None, 0))(t, x) for law in (made, truth))
        middle = jax.vmap(made.between, (None, 0, 0))(t, x0, x1)
        return jnp.mean((found - exact) ** 2), jnp.mean(exact**2), middle.var() + EPS * t * (1 - t)

    gaps, sizes, variances = jax.lax.map(at, jnp.asarray(TIMES))
    return jnp.sqrt(gaps.mean() / sizes.mean()), variances


def bridge_picture(found: list[Bridged]) -> Picture:
    curves: dict[str, tuple[Callable, str]] = {
        "Schrödinger bridge": (lambda t: variance(t, SHARED), "-"),
        "linear interpolant": (lambda t: variance(t, 0.0), "--"),
    }
    with house() as (figure, axes):
        for i, (name, (curve, style)) in enumerate(curves.items()):
            axes.plot(TIMES, curve(TIMES), style, color=f"C{i}", label=name)
        for i, one in enumerate(found):
            label = "optimised interpolant" if i == 0 else None
            axes.plot(TIMES, one.variances, ".", ms=4, color="C2", label=label)
        axes.set(xlabel="t", ylabel="variance of x", ylim=(0, None))
        axes.legend(fontsize=7)
    return Picture(
        "bridge",
        figure,
        "Variance over time of the linear and the optimised interpolant and of the Schrödinger bridge",
        "Bent by the game of drift and interpolant, the variance goes over from the linear one to the bridge's.",
    )
