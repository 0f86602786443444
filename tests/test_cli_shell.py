"""The program as a shell runs it: a whole pipeline of processes, and Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kinema.motion import Trajectory, store

TINY = ["--model", "mlp", "--size", "width=16", "--size", "depth=1", "--batch-size", "16"]


@pytest.fixture(scope="module")
def environment():
    cache = os.path.join(os.path.dirname(__file__), "..", ".cache", "jax-shell")
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": os.path.abspath(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def kinema(*words):
    return [shutil.which("kinema", path=os.path.dirname(sys.executable)) or "kinema", *map(str, words)]


def test_a_pipeline_of_processes(tmp_path, environment):
    def run(*words):
        done = subprocess.run(kinema(*words), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("simulate", "collisions", "-n", 64, "-p", "frames=4", "-o", "balls.zarr")
    run("learn", "balls.zarr", "-o", "run/", "--steps", 20, *TINY)
    run("generate", "run/", "-n", 8, "--steps", 3, "-o", "new.zarr")
    run("steer", "run/", "--world", "collisions", "-n", 8, "--steps", 3, "-o", "steered.zarr")
    found = json.loads(run("verify", "steered.zarr", "--world", "collisions", "-o", "report/", "--json"))
    assert found["laws"]["steered"]["replay"]["mean"] <= 1e-5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "balls.zarr",
        "new.zarr",
        "report",
        "run",
        "steered.zarr",
    ]


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT")
def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path, environment):
    motion = Trajectory([0.0, 1.0], {"x": np.arange(32.0).reshape(16, 2, 1)})
    motion.save(tmp_path / "data.zarr")
    words = kinema("learn", "data.zarr", "-o", "run", "--steps", 1_000_000, *TINY)
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        checkpoints = tmp_path / "run" / "checkpoints"
        deadline = time.monotonic() + 120
        while not (checkpoints.is_dir() and any(checkpoints.glob("step-0*"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1] == "stopped: kinema learn data.zarr -o run --resume goes on"
    assert (tmp_path / "run" / "history.json").is_file() and (tmp_path / "run" / "config.json").is_file()
    assert store.verify(tmp_path / "data.zarr")
