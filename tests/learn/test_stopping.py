import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn import History, Patience, Probe, ProbeRecord, fit


def seen(*values):
    return History({}, {"p": ProbeRecord(np.arange(len(values)) * 10, {".": np.array(values)})})


@pytest.mark.parametrize(
    ("values", "options", "stops", "best"),
    [
        ([3, 2, 1], {}, False, 20),
        ([3, 2, 2.5, 2.1], {"looks": 2}, True, 10),
        ([3, 2, 2.5, 1.9], {"looks": 2}, False, 30),
        ([3, 2.95, 2.92], {"looks": 2, "least": 0.1}, True, 0),
        ([1, 2, 1.5], {"looks": 1, "higher": True}, True, 10),
        ([np.nan, 2, np.nan], {"looks": 2}, False, 10),
    ],
)
def test_patience(values, options, stops, best):
    patience = Patience("p", **options)
    assert (patience(seen(*values)), patience.best_step(seen(*values))) == (stops, best)


def test_a_run_stops_and_stays_stopped(key, tmp_path):
    """w falls to 1 and the held-out optimum is 3: with rate 0.1 the probe is best at (5 - 1) 0.9^k = 2, k = 6.6."""

    def loss(w, batch, key):
        return (w - 1) ** 2 / 2, {}

    probe = Probe("held", lambda w, key: {"loss": (w - 3) ** 2}, every=1)
    options = {"optimizer": optax.sgd(0.1), "steps": 100, "chunk": 1, "progress": False, "key": key, "probes": [probe]}
    patience = Patience("held/loss", looks=4)
    run = fit(jnp.array(5.0), loss, folder=tmp_path / "run", stop=patience, **options)
    assert patience.best_step(run.history) == 7 and run.step == 11
    again = fit(jnp.array(5.0), loss, folder=tmp_path / "run", stop=patience, resume=True, **options)
    assert again.step == 11 and again.model == run.model
    assert fit(jnp.array(5.0), loss, folder=tmp_path / "run", resume=True, **options).step == 100


def test_bad_input_is_refused(key):
    with pytest.raises(InputError, match="unknown probe 'q'"):
        Patience("q")(seen(1, 2))
    with pytest.raises(InputError, match="unknown value of probe 'p' 'loss'"):
        Patience("p/loss")(seen(1, 2))
    with pytest.raises(InputError, match=r"p must be one number a look, got shape \(2,\)"):
        Patience("p")(History({}, {"p": ProbeRecord(np.arange(1), {".": np.ones((1, 2))})}))
    with pytest.raises(InputError, match="looks >= 1 and least >= 0"):
        Patience("p", looks=0)
    with pytest.raises(InputError, match="stop is asked when a probe has looked"):
        run = {"optimizer": optax.sgd(0.1), "steps": 1, "key": key, "progress": False}
        fit(jnp.ones(()), lambda w, b, k: (w, {}), stop=Patience("p"), **run)
