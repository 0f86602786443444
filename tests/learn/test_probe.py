import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kinema.errors import InputError
from kinema.learn import Probe, effective_step_probe, fit


def bowl(w, batch, key):
    return jnp.sum(jnp.array([1.0, 3.0]) * w["x"] ** 2) + w["y"] ** 2, {}


START = {"x": jnp.array([2.0, -1.0]), "y": jnp.array(0.5)}
OPTIONS = {"steps": 4, "chunk": 1, "progress": False}


def test_a_probe_of_the_run_sees_moments_and_average(key):
    def look(run, key):
        return {"nu": run.state.opt_state[0].nu["y"], "step": run.state.step, "average": run.ema["y"]}

    run = fit(START, bowl, optimizer=optax.adam(0.1), key=key, ema=0.5, probes=[Probe("a", look, 1, "run")], **OPTIONS)
    seen = run.history.probes["a"].values
    assert seen["step"].tolist() == [0, 1, 2, 3, 4] and np.isclose(seen["nu"][1], 0.001 * 1.0)
    assert seen["average"][-1] == run.ema["y"] != run.model["y"]


@pytest.mark.parametrize("rule", [optax.adam(0.1), optax.chain(optax.sgd(0.05, momentum=0.9), optax.scale(0.5))])
def test_the_effective_step_is_the_step_that_follows(rule, key):
    probes = [effective_step_probe(bowl, rule, every=1), Probe("w", lambda w, key: w, every=1)]
    run = fit(START, bowl, optimizer=rule, key=key, probes=probes, **OPTIONS)
    step, weights = (run.history.probes[name].values for name in ("effective step", "w"))
    for leaf in ("x", "y"):
        w = weights[leaf].reshape(5, -1)
        size = np.linalg.norm(w, axis=1)
        np.testing.assert_allclose(
            step[f"relative/{leaf}"][:-1], np.linalg.norm(np.diff(w, axis=0), axis=1) / size[:-1], rtol=1e-5
        )
    cosine = np.sum(w[1:] * w[:-1], 1) / size[1:] / size[:-1]
    np.testing.assert_allclose(np.cos(step["angle/y"][:-1]), cosine, atol=1e-6)


def test_only_what_learns_takes_a_step(key):
    probe = effective_step_probe(bowl, optax.sgd(0.1), trainable="y")
    run = fit(START, bowl, optimizer=optax.sgd(0.1), key=key, trainable="y", probes=[probe], **OPTIONS)
    assert sorted(run.history.probes["effective step"].values) == ["angle/y", "relative/y"]


def test_arguments():
    for bad in ({"name": "a/b"}, {"name": ""}, {"every": 0}, {"every": (3, -1)}):
        with pytest.raises(InputError):
            Probe(**({"name": "a", "measure": print} | bad))


def test_due_once_for_each_wanted_step():
    probe = Probe("a", print, every=30)
    assert [step for step in range(0, 121, 20) if probe.due(step - 20 if step else -1, step)] == [0, 40, 60, 100, 120]
    probe = Probe("a", print, every=[0, 1, 50])
    assert [step for step in range(0, 121, 20) if probe.due(step - 20 if step else -1, step)] == [0, 20, 60]
