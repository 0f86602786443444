"""Where a measurement comes from: versions, device, day and commit."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("kinema", "jax", "jaxlib", "numpy", "equinox", "optax", "diffrax")


def collect() -> dict[str, Any]:
    """`versions`, `device`, `date` (UTC) and `commit`, fields of `Evidence`."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"versions": versions(), "device": device(), "date": today, "commit": commit()}


def versions() -> dict[str, str]:
    """Of Python and of what numbers depend on; packages that are not installed are left out."""
    from kinema import __version__

    found = {"python": platform.python_version(), "kinema": __version__}
    for name in PACKAGES[1:]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """JAX's default device in words: "NVIDIA H100 80GB HBM3 x 1", "CPU, 2 cores"."""
    import jax

    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{devices[0].device_kind} x {len(devices)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU, {cores} cores"


def commit() -> str:
    """The commit of the checkout that Kinema runs from, with "+" if files differ from it; empty outside of one."""
    package = Path(__file__).resolve().parent.parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != package.parent:  # installed inside somebody else's repository
        return ""
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and _git(package, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
