"""Shared fixtures. jaxtyping annotations are checked at run time in every test."""

import gc
import importlib.metadata
import os
import pathlib
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA calls options of its own compiler missing machine features when it reads its cache
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Without these emitters XLA compiles our programs in less than half the time; jaxlib refuses flags it does not know
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a job in a shell's background starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

from jaxtyping import install_import_hook

# Not for the store, the command line or studies: there is nothing to check there but time to lose.
install_import_hook(
    [f"kinema.{stage}" for stage in ("motion", "models", "simulate", "learn", "generate", "steer", "verify")],
    "beartype.beartype",
)

import jax
import jax.random as jr
import numpy as np
import pytest

# One folder a worker: JAX does not lock its cache, and a half-written program crashes whoever reads it
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
CACHE = os.path.join(os.path.dirname(__file__), "..", ".cache", "jax", WORKER)
if not os.environ.get("CI"):  # a fresh clone has nothing to read
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Most programs here run once or twice, so LLVM's optimisations cost more than they save; see `optimised`
jax.config.update("jax_disable_most_optimizations", True)
gc.set_threshold(200_000, 20, 100)  # tracing makes many small objects and few cycles


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 45_000  # Linux allows a process 65,530 memory maps, and each compiled program keeps a few of them


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What earlier files compiled is dropped before the process runs out of memory maps, which would crash it."""
    forget_where_many()


def forget_where_many():
    """Drop compiled programs once there are many; a few seconds, and they are compiled anew where they are needed."""
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def key():
    return jr.key(0)


@pytest.fixture
def optimised():
    """Programs compiled as users have them, for tests of that and for those that run long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Double precision inside one test."""
    with jax.enable_x64(True):
        yield


def assert_within_error(estimate, truth, *, standard_error, times=4.0):
    """A random estimate is within `times` standard errors of the truth, elementwise."""
    estimate, truth = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    gap, allowed = np.abs(estimate - truth), times * np.asarray(standard_error, np.float64)
    assert np.all(gap <= allowed), f"off by {gap.max():.3g}, allowed {np.max(allowed):.3g}: {estimate} against {truth}"
