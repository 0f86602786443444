"""The interpolant of least energy: exact between two normal laws, and found by the game."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate import LightBridge, OptimalInterpolant, fit_optimal_interpolant
from kinema.generate.bridges.optimal_interpolant import _Game

EPS, START, END = 0.6, 1.0, 0.2  # volatility and variances of the two normal laws
SHARED = (np.sqrt(4 * START * END + EPS**2) - EPS) / 2  # covariance of the ends under the bridge
LEAST, LINEAR = 0.982957, 1.032450  # energies of the bridge and of the linear interpolant, by quadrature


class Drift(eqx.Module):
    """The best drift between centred normal laws for an interpolant with `share` of the bridge's covariance of ends."""

    share: jax.Array

    def __call__(self, x, signal):
        def variance(t):
            return (1 - t) ** 2 * START + t**2 * END + (2 * SHARED * self.share + EPS) * t * (1 - t)

        value, rate = jax.value_and_grad(variance)(time(signal))
        return (rate / 2 - EPS / 2) / value * x


class Bend(eqx.Module):
    """What gives the interpolant that share."""

    share: jax.Array

    def __call__(self, both, signal):
        t, (x0, x1) = time(signal), jnp.split(both, 2)
        free, shared = (1 - t) ** 2 * START + t**2 * END, 2 * SHARED * self.share
        wider = jnp.sqrt(1 + shared * t * (1 - t) / free)
        return shared / (free * (wider + 1)) * ((1 - t) * x0 + t * x1)  # wider - 1 over t (1 - t)


def time(signal):
    return (1 + signal / 4) / 2


def exact(drift: float = 1.0, bend: float = 1.0) -> OptimalInterpolant:
    return OptimalInterpolant(Drift(jnp.array(drift)), Bend(jnp.array(bend)), eps=EPS, origins=jnp.zeros((2, 1)))


def ends(key, n):
    """Rows of both laws with exactly their variances."""
    sides = (side - side.mean() for side in jr.normal(key, (2, n, 1)))
    return [side / side.std() * variance**0.5 for side, variance in zip(sides, (START, END))]


def test_energies_of_exact_drifts(key):
    x0, x1 = ends(key, 400_000)
    for share, truth in ((1.0, LEAST), (0.0, LINEAR)):
        assert abs(exact(share, share).energy(x0, x1, key=key) / truth - 1) < 0.01  # four standard errors
    at = exact()
    assert np.allclose(jax.vmap(at.between, (0, None, None))(jnp.arange(2.0), x0[0], x1[0]), jnp.stack([x0[0], x1[0]]))
    light = LightBridge(jnp.zeros((1, 1)), SHARED, eps=EPS)
    assert np.allclose(at.drift(0.3, x0[0]), light.drift(0.3, x0[0]), atol=1e-5)


def test_the_drift_goes_down_and_the_bend_up(key):
    """A linear interpolant is driven to bend; at the bridge neither player gains; each meets the other's mistakes."""
    game = _Game(tuple(ends(key, 100_000)), 100_000)
    slopes = jax.jit(jax.grad(lambda model: game(model, None, key)[0], allow_int=True))

    def slope(drift, bend):
        at = slopes(exact(drift, bend))
        return float(at.net.share), float(at.bend.share)

    (_, bend), (drift_best, bend_best) = slope(0.0, 0.0), slope(1.0, 1.0)
    assert bend < -0.02 and abs(bend_best) < 0.2 * abs(bend)
    assert slope(0.0, 1.0)[0] < -0.02 < drift_best < 0.01 < slope(2.0, 1.0)[0]


def test_the_bridge_is_found(key):
    """Moved and stretched, so that the units of the fit are not those of the data."""
    key_data, key_fit, key_test = jr.split(key, 3)
    x0, x1 = ends(key_data, 20_000)
    bridge, history = fit_optimal_interpolant(
        2 * x0 + 3, 2 * x1[:15_000] + 4, eps=4 * EPS, width=32, steps=800, key=key_fit, progress=False
    )
    x0, x1 = ends(key_test, 400_000)
    energy = (bridge.energy(2 * x0 + 3, 2 * x1 + 4, key=key_test) - 1) / 4  # the means move by 1
    assert abs(energy / LEAST - 1) < 0.01
    assert abs(history.metrics["energy"][-100:].mean() * np.mean([START, END]) / LEAST - 1) < 0.05
    light = LightBridge(jnp.zeros((1, 1)), SHARED, eps=EPS)
    t, x = jnp.meshgrid(jnp.linspace(0.05, 0.95, 10), jnp.linspace(-1, 1, 9))
    found = jax.vmap(lambda t, x: (bridge.drift(t, 2 * x + 3 + t) - 1) / 2)(t.ravel(), x.reshape(-1, 1))
    truth = jax.vmap(light.drift)(t.ravel(), x.reshape(-1, 1))
    assert jnp.sqrt(jnp.mean((found - truth) ** 2)) < 0.1 * jnp.sqrt(jnp.mean(truth**2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, "eps must be a positive number"),
        ({"lead": 0.5}, "lead must be at least 1, got 0.5"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"x1": np.zeros((5, 2))}, "same dim"),
        ({"x0": np.zeros(5)}, "x0 must have shape"),
        ({"x0": np.ones((5, 1)), "x1": np.ones((5, 1))}, "must vary"),
        ({"x0": np.full((5, 1), np.nan)}, "x0 must be finite"),
    ],
)
def test_bad_input(change, message, key):
    given = {"x0": np.arange(5.0)[:, None], "x1": np.arange(5.0)[:, None], "eps": 1.0} | change
    with pytest.raises(InputError, match=message):
        fit_optimal_interpolant(**given, steps=1, key=key, progress=False)
    with pytest.raises(InputError, match="same shape"):
        exact(1.0).energy(jnp.zeros((2, 1)), jnp.zeros((3, 1)), key=key)
    with pytest.raises(InputError, match="origins"):
        OptimalInterpolant(abs, abs, eps=1.0, origins=jnp.zeros((3, 1)))
    with pytest.raises(InputError, match="unit"):
        OptimalInterpolant(abs, abs, eps=1.0, origins=jnp.zeros((2, 1)), unit=0.0)
