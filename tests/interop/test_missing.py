"""Without its extra a bridge says what to install; the diffusers bridge needs no JAX."""

import subprocess
import sys

import pytest

from kinema.errors import MissingExtra


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["torch", "diffusers"])
def test_missing_extra_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, f"kinema.interop.{module}", raising=False)
    with pytest.raises(MissingExtra, match=r"torch is not installed; pip install 'kinema\[diffusers\]'"):
        __import__(f"kinema.interop.{module}")


def test_the_scheduler_needs_no_jax():
    pytest.importorskip("diffusers")
    code = """
import sys, torch
from kinema.interop.diffusers import KinemaScheduler
scheduler = KinemaScheduler(solver="unipc")
scheduler.set_timesteps(4)
x = torch.ones(1, 1, 2, 2)
for t in scheduler.timesteps:
    x = scheduler.step(0.1 * x, t, x).prev_sample
assert torch.isfinite(x).all()
print([name for name in sys.modules if name.split(".")[0] in ("jax", "jaxlib", "equinox")])
"""
    assert run(code).strip() == "[]"
