"""Slopes are central differences; a rate is learnt from series with half of the frames missing; bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema import learn
from kinema.errors import InputError
from kinema.learn import SlopeLoss, TrajectoryLoss, slopes, windows
from kinema.models import NeuralODE


class Decay(eqx.Module):
    rate: jax.Array

    def __call__(self, x):
        return -self.rate * x


def series(ts, rate=0.7):
    return np.exp(-rate * ts)[None, :, None] * np.array([[[1.0]], [[-2.0]]])


def test_slopes_are_central_differences():
    rows = slopes(np.arange(5) / 4, series(np.arange(5) / 4))
    truth = (series(np.array([0.5])) - series(np.array([0.0])))[0, 0, 0] / 0.5
    assert rows["slope"].shape == (6, 1) and rows["slope"][0, 0] == pytest.approx(truth, rel=1e-5)
    loss, _ = SlopeLoss((2.0,))(NeuralODE(Decay(jnp.array(0.0))), rows)
    assert loss == pytest.approx(float(jnp.mean((rows["slope"] / 2) ** 2)), rel=1e-5)


def test_the_rate_is_learnt_with_half_of_the_frames_missing():
    """x' = -rate x known up to rate: 0.7 is found from series of which frames are NaN."""
    ts = np.linspace(0, 2, 9)
    x = series(ts)
    x[0, 2::2] = np.nan
    x[1, 1::2] = np.nan
    rows = windows(ts, x, 9)
    assert rows["seen"].sum() == 5 + 5 and len(windows(ts, x, 3)["x"]) == 4 + 4
    model = NeuralODE(Decay(jnp.array(0.5)), physics=lambda t, x, args: 0.2 * x)
    fitted = learn.fit(
        model,
        TrajectoryLoss(1.0, dt=0.05),
        rows,
        optimizer=learn.adam(0.1, 120),
        steps=120,
        batch_size=2,
        key=jax.random.key(0),
        ema=None,
        chunk=120,
        progress=False,
    )
    assert fitted.model.field.rate == pytest.approx(0.9, abs=2e-3) and fitted.history.loss[-1] < 1e-5


def test_bad_input():
    ts, x = np.arange(4.0), np.ones((2, 4, 1))
    for match, call in {
        "length must be in 2..4": lambda: windows(ts, x, 5),
        "stride": lambda: windows(ts, x, 2, stride=0),
        "ts must increase": lambda: windows(ts[::-1], x, 2),
        r"x must have shape": lambda: slopes(ts, x[0]),
        "all finite": lambda: slopes(ts, x * np.nan),
    }.items():
        with pytest.raises(InputError, match=match):
            call()
