"""`python -m benchmarks [NAMES]`: speed beside the peers, as a table, results/*.json and a figure for the docs."""

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys

from benchmarks import harness

COMPARED = {
    "sampling": ("diffusers",),
    "adaptive": ("torchdiffeq",),
    "sde": ("torchsde",),
    "poisson_flow": ("k_diffusion",),
    "light_bridge": ("torch",),
    "masked": ("torch",),
    "marginalization": ("gfn",),
    "interpolants": ("torchcfm", "flow_matching"),
    "federated": ("flwr",),
    "optimizers": ("optax",),
    "dimension": ("skdim",),
    "equilibrium": ("jax",),
}
OTHERS = {"balls": ("pymunk",)}  # scripts with results of their own


def main() -> int:
    parser = argparse.ArgumentParser(prog="kinema bench", description="Measure speed beside other libraries.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COMPARED | OTHERS)}; all by default")
    parser.add_argument("--threads", type=int, default=1, help="cores for both sides (default 1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each comparison (default 3)")
    options = parser.parse_args()
    for name in options.names:
        if name not in COMPARED | OTHERS:
            parser.error(f"unknown benchmark {name!r}; known: {', '.join(COMPARED | OTHERS)}")
    names = options.names or list(COMPARED | OTHERS)
    absent = {n: p for n in names for p in (COMPARED | OTHERS)[n] if importlib.util.find_spec(p) is None}
    for name, peer in absent.items():
        print(f"{name} is left out: {peer} is not installed; `make bench` installs most peers", file=sys.stderr)
    names = [name for name in names if name not in absent]
    if not names:
        return 1
    load = os.getloadavg()[0]
    for name in [name for name in names if name in OTHERS]:  # before cores are taken from this process
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    names = [name for name in names if name in COMPARED]
    threads = harness.pin(options.threads) if names else 0
    if names:
        print(
            f"load {load:.1f} on {os.cpu_count()} cores; {threads} thread(s) a side; ratio: peer / Kinema [quartiles]"
        )
    for name in names:
        harness.save(name, importlib.import_module(f"benchmarks.{name}").run(options.seconds), threads, load)
    rows = [row for name in COMPARED if (harness.RESULTS / f"{name}.json").is_file() for row in harness.load(name)]
    if names:
        harness.draw(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
