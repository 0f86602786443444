"""The live line of a run, and leaving it by Ctrl-C."""

import signal
import sys
import threading

import numpy as np


class Progress:
    """Bar, step, loss, steps a second, time left, on standard error; silent if that is not a terminal.

    Shown by Rich, which is imported when there is something to show.
    """

    def __init__(self, steps: int, *, start: int = 0, show: bool = True):
        self.bar = self.task = None
        if not (show and sys.stderr.isatty()):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("learn"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  loss {task.fields[loss]}  {task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
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
