"""How speed is compared: equal results first, then both sides in turn on the same cores, then the ratio of each pair.

A load that comes and goes hits the two runs of a pair alike, so the median of ratios is steadier than a ratio of
medians; its spread says how far to trust it. The ratio of processor times, which waiting for a core does not change,
stands beside it: under load believe that one.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "speed.svg"
PEERS = ("jax", "diffrax", "torch", "diffusers", "k-diffusion", "torchdiffeq", "torchsde", "pymunk")
PEERS += ("torchcfm", "flow-matching", "torchgfn", "scikit-dimension", "flwr")


@dataclass(frozen=True)
class Row:
    """One comparison: medians in milliseconds, `ratio` peer / ours with its quartiles, `cpu_ratio` of processor time.

    `difference` is None where both draw their own noise.
    """

    case: str
    peer: str
    difference: float | None
    ours_ms: float
    peer_ms: float
    ratio: float
    low: float
    high: float
    cpu_ratio: float
    runs: int
    first_call_s: float
    target: float


def pin(threads: int) -> int:
    """Give this process `threads` of its cores, the same for XLA and torch; to be called before importing either."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(0, cores)
        threads = len(cores)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    import torch

    torch.set_num_threads(threads)
    return threads


def compare(
    case: str,
    peer: str,
    ours: Callable[[], np.ndarray],
    theirs: Callable[[], np.ndarray],
    *,
    target: float,
    seconds: float = 3.0,
    tolerance: float | None = 1e-4,
    least: int = 15,
) -> Row:
    """Time `ours` and `theirs`, which return NumPy arrays, in turn for about `seconds`.

    Their results must agree to `tolerance` of the largest number first; None leaves that to the caller.
    """
    started = time.perf_counter()
    x = ours()
    first_call = time.perf_counter() - started
    y = theirs()
    difference = None if tolerance is None else float(np.abs(x - y).max() / np.abs(y).max())
    if difference is not None and not difference <= tolerance:
        raise AssertionError(f"{case}: Kinema and {peer} differ by {difference:.2g}, allowed {tolerance:g}")
    bursts = [_burst(run) for run in (ours, theirs)]
    times, ends = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < ends:
        # the order changes, so that neither side always finds the other's data in the cache
        first, second = (0, 1) if len(times) % 2 else (1, 0)
        sides = {first: _time(*bursts[first]), second: _time(*bursts[second])}
        times.append((sides[0], sides[1]))
    (mine, my_cpu), (others, their_cpu) = np.array(times).transpose(1, 2, 0)
    low, ratio, high = (float(v) for v in np.percentile(others / mine, [25, 50, 75]))
    cpu_ratio = float(np.median(their_cpu / np.maximum(my_cpu, 1e-9)))
    ms = [1e3 * float(np.median(values)) for values in (mine, others)]
    row = Row(case, peer, difference, *ms, ratio, low, high, cpu_ratio, len(times), first_call, target)
    print(line(row), flush=True)
    return row


def line(row: Row) -> str:
    met = "met" if row.ratio >= row.target else "MISSED"
    apart = "" if row.difference is None else f", results {row.difference:.0e} apart"
    return (
        f"{row.case:36s} {row.peer:12s} {row.ours_ms:8.3f} ms {row.peer_ms:8.2f} ms {row.ratio:6.1f}x"
        f" [{row.low:.1f}, {row.high:.1f}], processor {row.cpu_ratio:.1f}x; target {row.target:g}x {met}"
        f"; {row.runs} pairs, first call {row.first_call_s:.1f} s{apart}"
    )


def save(name: str, rows: list[Row], threads: int, load: float) -> Path:
    """Write results/NAME.json: the rows, and where and when they were measured."""
    RESULTS.mkdir(exist_ok=True)
    versions = {}
    for package in PEERS:
        try:
            versions[package] = version(package)
        except ImportError:
            continue
    where = {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count(), "threads": threads}
    when = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load_before": round(load, 2)}
    file = RESULTS / f"{name}.json"
    file.write_text(
        json.dumps(where | when | {"versions": versions, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    return file


def load(name: str) -> list[Row]:
    """The rows of results/NAME.json."""
    return [Row(**row) for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]]


def draw(rows: list[Row], file: Path = FIGURE) -> None:
    """Ratios as points with their quartiles on a logarithmic axis, targets as ticks; an SVG."""
    from kinema.report.charts import house

    with house(7.0, 1.1 + 0.27 * len(rows)) as (figure, axes):
        for place, row in enumerate(reversed(rows)):
            axes.plot([row.low, row.high], [place, place], color="C0", lw=2)
            axes.plot(row.ratio, place, "o", color="C0", label="measured, quartiles" if place == 0 else None)
            axes.plot(row.target, place, "|", color="0.5", ms=11, label="target" if place == 0 else None)
        axes.axvline(1, color="0.5", lw=1)
        axes.set_yticks(range(len(rows)), [f"{row.case} / {row.peer}" for row in reversed(rows)])
        axes.set(xscale="log", xlabel="times faster than the peer")
        axes.xaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside upper right", ncols=2)
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file, format="svg", metadata={"Date": None})


def _burst(run: Callable[[], np.ndarray]) -> tuple[Callable[[], np.ndarray], int]:
    """A run and how many calls in a row take about 3 ms: short ones would else be timed with cold caches."""
    return run, max(1, round(3e-3 / min(_time(run, 1)[0] for _ in range(5))))


def _time(run: Callable[[], np.ndarray], calls: int) -> tuple[float, float]:
    """Seconds a call that passed, and seconds of the processor in all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run()
    return (time.perf_counter() - wall) / calls, (time.process_time() - processor) / calls


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(text.split(":")[1].strip() for text in lines if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
