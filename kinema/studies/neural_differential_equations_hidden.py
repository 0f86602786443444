"""A hidden term of Lotka-Volterra: the growth of prey and the death of predators are known, their meeting is not."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema import learn
from kinema.models import NeuralODE, ScaledField, VectorField
from kinema.motion import FunctionLaw, integrate

GROWTH, MEETING, GAIN, DEATH = 1.3, 0.9, 0.8, 1.8
TRUTH = ({"x y": -MEETING}, {"x y": GAIN})
NOISE = 0.01  # of a number
LATER = 12.0  # series are observed for a third of it
LIBRARY = learn.Library(("x", "y"), 3)


class Recovered(NamedTuple):
    """The formula of each rate, whether its terms are the true ones, errors of constants and of forecasts."""

    equations: tuple[str, ...]
    exact: bool
    constants: float
    forecast: float
    forecast_network: float
    losses: tuple[np.ndarray, ...]


def world(t, x, args):
    return jnp.array([GROWTH * x[0] - MEETING * x[0] * x[1], GAIN * x[0] * x[1] - DEATH * x[1]])


def known(t, x, args):
    return jnp.array([GROWTH * x[0], -DEATH * x[1]])


@eqx.filter_jit
def runs(law, starts, ts):
    return jax.vmap(lambda x0: integrate(law, x0, ts, rtol=1e-6, atol=1e-6, throw=False).states)(starts)


def recovered(steps: tuple[int, int, int], key) -> Recovered:
    """Slopes, then windows of six frames, then a formula, then its constants on whole series."""
    key_start, key_noise, key_net, *keys = jr.split(key, 6)
    later = np.linspace(0, LATER, 121)
    ts = later[:41]  # what is observed
    starts = jr.uniform(key_start, (8, 2), minval=0.5, maxval=4.0)
    true = runs(FunctionLaw(world), starts, later)
    clean = true[:, : len(ts)]
    seen = clean * (1 + NOISE * jr.normal(key_noise, clean.shape))
    net = ScaledField(VectorField(2, 2, width=32, gain=0.1, key=key_net), (1.5, 1.5), (1.5, 1.5), (3.0, 3.0))
    law = NeuralODE(net, known)
    law = _fit(law, learn.SlopeLoss(3.0), learn.slopes(ts, seen), steps[0], 1e-2, 128, keys[0])
    shooting = learn.TrajectoryLoss(1.0, 0.05)
    law = _fit(law, shooting, learn.windows(ts, seen, 6, stride=2), steps[1], 2e-3, 64, keys[1])
    front = learn.discover(seen.reshape(-1, 2), law.field, LIBRARY)
    formula = eqx.tree_at(lambda law: law.field, law, front.best)
    formula = _fit(formula, shooting, learn.windows(ts, seen, len(ts)), steps[2], 5e-3, 8, keys[2], ema=None)
    found = formula.field.terms
    exact = all(set(one) == set(true) for one, true in zip(found, TRUTH))
    gaps = [abs(one.get(name, 0.0) / value - 1) for one, true in zip(found, TRUTH) for name, value in true.items()]
    by_formula, by_network = (
        _off(runs(one, starts, later)[:, len(ts) :], true[:, len(ts) :]) for one in (formula, law)
    )
    return Recovered(formula.field.equations(), exact, max(gaps), by_formula, by_network, front.losses)


def _off(x, true) -> float:
    """Root mean square of the gap."""
    return float(jnp.sqrt(jnp.mean((x - true) ** 2)))


def _fit(law, loss, rows, steps, rate, batch, key, ema: float | None = 0.99):
    if not steps:
        return law
    how = {"optimizer": learn.adam(rate, steps), "steps": steps, "batch_size": batch, "key": key, "ema": ema}
    return learn.fit(law, loss, rows, **how, progress=False).ema
