"""Real kills of real processes. One process imports JAX and forks a child for every run, which saves the imports."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path

warnings.filterwarnings("ignore", message=".*os.fork")
import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, numpy as np
from kinema import learn
from kinema.learn import Probe, fit

folder, cache = Path(sys.argv[1]), sys.argv[2]
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
STEPS, CHUNK = 300, 10
started, go = folder / "started", folder / "go"
go.touch()


def loss(model, batch, key):
    noise = 0.1 * jr.normal(key, batch.shape)
    return jnp.mean((jax.vmap(model)(batch + noise) - batch) ** 2), {"noise": noise[0, 0]}


def measure(model, key):
    started.touch()
    wait(go.exists)
    return jnp.sum(model.weight)


def train(name, every):
    data = np.random.default_rng(0).normal(size=(77, 4)).astype(np.float32)
    fit(eqx.nn.Linear(4, 4, key=jr.key(1)), loss, data, optimizer=learn.adam(1e-2, STEPS), steps=STEPS, batch_size=16,
        key=jr.key(2), chunk=CHUNK, folder=folder / name, resume=True, checkpoint_every=every,
        probes=[Probe("weight", measure, every=range(50, STEPS, 50))])


def child(name, every):
    started.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(name, every)
            code = 0
        except KeyboardInterrupt as interrupt:
            (folder / "message").write_text(str(interrupt))
            code = 77
        finally:
            os._exit(code)
    return pid


def newest(name):
    return max((int(p.name[5:]) for p in (folder / name / "checkpoints").glob("step-*")), default=-1)


def wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.001)


def finish(name, every):
    return os.waitstatus_to_exitcode(os.waitpid(child(name, every), 0)[1])


report = {"kills": [], "whole": finish("whole", CHUNK)}

# SIGKILL at random moments of a run that writes a checkpoint after every chunk, so most hit a write.
dice, reached = random.Random(os.getpid()), 0
while len(report["kills"]) < 4 and reached < 0.9 * STEPS:
    pid = child("killed", CHUNK)
    wait(lambda: newest("killed") > reached)
    time.sleep(dice.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    reached = newest("killed")
    report["kills"].append(reached)
report["finished"] = finish("killed", CHUNK)

# Ctrl-C in a run that writes no checkpoint of its own for a minute.
go.unlink()
pid = child("left", None)
wait(started.exists)  # it is between two chunks now, and waits
os.kill(pid, signal.SIGINT)
go.touch()
report["interrupted"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
report["left"] = newest("left")
report["message"] = (folder / "message").read_text() if (folder / "message").exists() else ""
report["resumed"] = finish("left", None)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, folder, folder / "cache"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_run_ends_with_the_same_bytes_as_one_that_was_not(report):
    folder, seen = report
    assert seen["whole"] == seen["finished"] == 0
    assert len(seen["kills"]) >= 2 and 0 < seen["kills"][0] < 300, seen
    whole, killed = contents(folder / "whole"), contents(folder / "killed")
    assert list(whole) and whole.keys() == killed.keys()
    assert whole == killed


def test_ctrl_c_writes_a_checkpoint_and_leaves(report):
    folder, seen = report
    assert seen["interrupted"] == 77, seen  # KeyboardInterrupt came out of fit
    assert 0 < seen["left"] < 300 and seen["left"] % 10 == 0
    assert f"left at step {seen['left']}" in seen["message"] and "resume=True" in seen["message"]
    assert seen["resumed"] == 0
    last = "checkpoints/step-00000300/state.safetensors"
    assert contents(folder / "whole")[last] == contents(folder / "left")[last]
