"""Rows of a batch over two devices, in a process that has two."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, warnings
import jax, jax.numpy as jnp, jax.random as jr, numpy as np
from kinema import learn
from kinema.learn import batches, fit

traces, places = [], []
warnings.simplefilter("always")


def loss(model, batch, key):
    traces.append(1)
    noise = jr.normal(key, batch["y"].shape)
    jax.debug.inspect_array_sharding(batch["x"], callback=lambda s: places.append(len(s.device_set)))
    return jnp.mean((jnp.tanh(batch["x"] @ model["w"]) + 0.1 * noise - batch["y"]) ** 2), {"noise": noise}


random = np.random.default_rng(0)
data = {"x": random.normal(size=(50, 4)).astype(np.float32), "y": random.normal(size=50).astype(np.float32)}


def run(batch_size=8, steps=60, **store):
    places.clear()
    result = fit({"w": jnp.ones(4), "n": jnp.arange(2)}, loss, data, optimizer=learn.adam(0.01, 60), steps=steps,
                 batch_size=batch_size, key=jr.key(0), chunk=20, progress=False, **store)
    return result, max(places, default=0)


(two, spread), first = run(), len(traces)
again, after = run()[0], len(traces)
batches.DEVICE_BYTES = 0
host, host_spread = run()
batches.DEVICE_BYTES = 1 << 30
with jax.default_device(jax.devices()[0]):
    one, single = run()
    run(steps=40, folder=sys.argv[1])
moved, _ = run(folder=sys.argv[1], resume=True)
with warnings.catch_warnings(record=True) as caught:
    odd, odd_spread = run(batch_size=7)
print(json.dumps({
    "devices": jax.device_count(), "spread": spread, "host spread": host_spread, "single": single,
    "model over": len(two.model["w"].sharding.device_set), "one over": len(one.model["w"].sharding.device_set),
    "gap": float(abs(np.asarray(two.model["w"]) - np.asarray(one.model["w"])).max()),
    "moved": float(abs(np.asarray(one.model["w"]) - 1).max()),
    "loss gap": float(abs(two.history.loss - one.history.loss).max()),
    "noise": bool((two.history.metrics["noise"] == one.history.metrics["noise"]).all()),
    "same again": bool((two.model["w"] == again.model["w"]).all()),
    "host": bool((two.model["w"] == host.model["w"]).all()),
    "traces": [first, after], "warned": [str(w.message) for w in caught if "devices" in str(w.message)],
    "odd": odd_spread, "moved gap": float(abs(np.asarray(moved.model["w"]) - np.asarray(one.model["w"])).max()),
    "moved over": len(moved.model["w"].sharding.device_set), "moved steps": len(moved.history),
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    script = tmp_path_factory.mktemp("devices") / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, script, script.with_name("run")],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_devices_compute_what_one_computes(seen):
    assert seen["devices"] == 2 and seen["model over"] == 2 and seen["one over"] == 1
    assert seen["moved"] > 0.1 and seen["gap"] < 1e-5 and seen["loss gap"] < 1e-5
    assert seen["noise"] and seen["same again"]


def test_rows_are_spread_over_the_devices(seen):
    assert (seen["spread"], seen["single"]) == (2, 1)
    assert seen["host spread"] == 2 and seen["host"]


def test_a_run_goes_on_with_another_number_of_devices(seen):
    assert seen["moved over"] == 2 and seen["moved steps"] == 60 and seen["moved gap"] < 1e-5


def test_nothing_is_compiled_again(seen):
    first, after = seen["traces"]
    assert first == after


def test_a_batch_that_does_not_divide_uses_fewer_devices_and_says_so(seen):
    assert seen["odd"] == 1 and len(seen["warned"]) == 1
    assert seen["warned"][0] == "a batch of 7 does not divide over 2 devices; 1 are used"
