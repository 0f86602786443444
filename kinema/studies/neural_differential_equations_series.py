"""Which way a spiral turns, from a noisy series with numbers missing: a neural CDE beside a recurrent network.

Both have about 2,100 parameters, the same series, batches and optimizer, and see times, values carried forward, and
what was observed. The recurrent network is also given three times the steps.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from kinema import learn
from kinema.models import NeuralCDE, make_path

FRAMES, KEPT, NOISE = 50, 0.7, 0.05
FEWER = 0.4  # of the numbers kept in a second test
CHANNELS = 5  # time, two values, two counts


class Series(NamedTuple):
    """Noisy spirals (n, frames, 2), what was observed, and 1 for those that turn anticlockwise."""

    ts: Float[Array, "n frames"]
    x: Float[Array, "n frames 2"]
    seen: Bool[Array, "n frames 2"]
    label: Float[Array, " n"]


def spirals(n: int, kept: float, key) -> Series:
    """Half of each kind, every number but the first kept with probability `kept`."""
    key_angle, key_seen, key_noise = jr.split(key, 3)
    ts = jnp.linspace(0, 4 * jnp.pi, FRAMES)
    turn = jnp.where(jnp.arange(n) % 2, 1.0, -1.0)
    angle = 2 * jnp.pi * jr.uniform(key_angle, (n, 1)) + 2 * turn[:, None] * ts
    clean = jnp.exp(-0.3 * ts)[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    seen = (jr.uniform(key_seen, clean.shape) < kept).at[:, 0].set(True)
    noisy = clean + NOISE * jr.normal(key_noise, clean.shape)
    return Series(jnp.tile(ts, (n, 1)), jnp.where(seen, noisy, 0), seen, (turn > 0).astype(float))


class Controlled(eqx.Module):
    """The neural CDE on the path through a series."""

    net: NeuralCDE

    def __call__(self, ts, x, seen):
        return self.net(make_path(ts, x, seen, counts=True))[0]


class Recurrent(eqx.Module):
    """A gated recurrent unit over (time since the last frame, values carried forward, mask)."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __call__(self, ts, x, seen):
        points = make_path(ts, x, seen, scheme="linear").points
        frames = jnp.concatenate([jnp.diff(ts, prepend=ts[:1])[:, None], points[:, 1:], seen], axis=1)

        def read(h, frame):
            return self.cell(frame, h), None

        h, _ = jax.lax.scan(read, jnp.zeros(self.cell.hidden_size), frames)
        return self.readout(h)[0]


def cross_entropy(model, batch: Series, key):
    """Objective: of the label, given the log-odds."""
    odds = jax.vmap(model)(batch.ts, batch.x, batch.seen)
    return jnp.mean(jax.nn.softplus(odds) - odds * batch.label), {}


@eqx.filter_jit
def accuracy(model, batch: Series):
    return jnp.mean((jax.vmap(model)(batch.ts, batch.x, batch.seen) > 0) == (batch.label > 0.5))


def accuracies(n: int, steps: int, tests: int, key) -> dict[str, dict[float, float]]:
    """Accuracy of each, on series with as many numbers as in training and with fewer."""
    key_data, key_test, key_net, key_readout, key_fit = jr.split(key, 5)
    data = spirals(n, KEPT, key_data)
    tested = {kept: spirals(tests, kept, key_test) for kept in (KEPT, FEWER)}
    recurrent = Recurrent(eqx.nn.GRUCell(CHANNELS, 24, key=key_net), eqx.nn.Linear(24, 1, key=key_readout))
    models = {
        "neural CDE": (Controlled(NeuralCDE(CHANNELS, 1, width=32, key=key_net)), steps),
        "recurrent network": (recurrent, steps),
        "recurrent network, three times the steps": (recurrent, 3 * steps),
    }
    found = {}
    for name, (model, count) in models.items():
        how = {"optimizer": learn.adam(1e-2, count), "steps": count, "batch_size": 32, "key": key_fit, "ema": None}
        fitted = learn.fit(model, cross_entropy, data, **how, progress=False).model
        found[name] = {kept: float(accuracy(fitted, batch)) for kept, batch in tested.items()}
    return found
