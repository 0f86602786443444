"""The live lines of a run, and leaving it by Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kinema.learn.history import ProbeRecord

if TYPE_CHECKING:
    from rich.table import Table


MOST_LINES, WIDTH, BLOCKS = 8, 32, "▁▂▃▄▅▆▇█"


class Progress:
    """Bar, step, loss, steps a second, time left, on standard error; silent if that is not a terminal.

    What probes see stands below the bar, a line for each number. Shown by Rich, which is imported when there is
    something to show.
    """

    def __init__(self, steps: int, *, start: int = 0, show: bool = True):
        self.bar = self.task = None
        self.lines: list[tuple[str, np.ndarray]] = []
        if not (show and sys.stderr.isatty()):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console, below = Console(stderr=True), self._below

        class WithLines(Bar):
            def get_renderables(self):
                yield self.make_tasks_table(self.tasks)
                yield below(ascii_only=console.options.ascii_only)

        self.bar = WithLines(
            TextColumn("learn"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  loss {task.fields[loss]}  {task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("learn", total=steps, completed=start, loss="–", rate="–")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, loss: np.ndarray) -> None:
        """`loss`: of the steps since the last call."""
        if self.bar is None or self.task is None:
            return
        self.bar.update(self.task, completed=step, loss=f"{loss.mean():.4g}")
        speed = self.bar.tasks[0].speed
        self.bar.update(self.task, rate="–" if speed is None else f"{speed:.4g}")

    def show(self, probes: Mapping[str, ProbeRecord]) -> None:
        """The course of the first few numbers that probes have measured; arrays are not drawn."""
        self.lines = [
            (name if leaf == "." else f"{name}/{leaf.removesuffix('/.')}", values)
            for name, record in probes.items()
            for leaf, values in record.values.items()
            if values.ndim == 1
        ][:MOST_LINES]

    def _below(self, *, ascii_only: bool) -> "Table":
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, values in self.lines:
            table.add_row(name, "" if ascii_only else sparkline(values), f"{values[-1]:.4g}")
        return table


def sparkline(values: Sequence[float] | np.ndarray, width: int = WIDTH) -> str:
    """Numbers as a row of blocks from the lowest to the highest; at most `width`, a space where one is not finite.

    >>> sparkline([0.0, 1.0, 2.0, 3.0, float("nan"), 7.0])
    '▁▂▃▄ █'
    """
    chosen = np.unique(np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int))
    shown = np.asarray(values, float)[chosen]
    finite = np.isfinite(shown)
    low, high = (shown[finite].min(), shown[finite].max()) if finite.any() else (0.0, 0.0)
    top = len(BLOCKS) - 1
    heights = np.where(finite, top * (shown - low) / (high - low if high > low else 1.0), 0).round().astype(int)
    return "".join(BLOCKS[height] if fine else " " for height, fine in zip(heights, finite))


class Interrupt:
    """Inside `with`, the first Ctrl-C only sets `requested`; the second raises KeyboardInterrupt as usual.

    Buffers are given away and taken back all the time while learning: an exception anywhere could lose the state. Other
    threads, and programs with their own handler, are left as they are.
    """

    requested = False

    def __enter__(self) -> "Interrupt":
        self.installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self.installed:
            signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self.installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _request(self, *_: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
