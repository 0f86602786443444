import io
import os
import signal
import sys
import threading

import numpy as np
import pytest

from kinema.learn import ProbeRecord
from kinema.learn.progress import Interrupt, Progress, sparkline


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(monkeypatch, stream, **settings):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(100, **settings) as line:
        line.update(50, np.array([2.0, 4.0]))
        line.update(100, np.array([0.125]))
        line.show({"judge": ProbeRecord(np.arange(3), {"a": np.array([1.0, 3.0, 8.0]), "wide": np.ones((3, 2))})})
    return stream.getvalue()


def test_a_terminal_sees_step_loss_speed_and_time_left(monkeypatch):
    shown = show(monkeypatch, Terminal(), start=10)
    assert "100/100" in shown and "loss 0.125" in shown and "steps/s" in shown and "0:00:00" in shown


def test_below_the_bar_stands_what_probes_saw(monkeypatch):
    shown = show(monkeypatch, Terminal())
    assert "judge/a  ▁▃█  8" in shown and "judge/wide" not in shown


def test_a_long_course_is_thinned_and_keeps_its_ends():
    line = sparkline(np.linspace(0, 1, 1000), width=8)
    assert line == "▁▂▃▄▅▆▇█"
    assert sparkline([np.nan, np.inf]) == "  " and sparkline([3.0, 3.0]) == "▁▁"


def test_nothing_is_shown_where_nobody_looks(monkeypatch):
    assert show(monkeypatch, io.StringIO()) == ""
    assert show(monkeypatch, Terminal(), show=False) == ""


def test_the_first_ctrl_c_asks_and_the_second_insists():
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_is_given_back_after_an_error():
    with pytest.raises(ZeroDivisionError), Interrupt():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_and_other_threads_are_left_alone():
    caught = []
    before = signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught == [1] and not interrupt.requested
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere():
        with Interrupt() as interrupt:
            caught.append(interrupt.installed)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert caught == [1, False]
