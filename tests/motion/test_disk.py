"""Locks where there are none, and files that appear whole or not at all."""

import errno
import os

import pytest

from kinema import _files
from kinema.errors import InputError
from kinema.motion import disk
from kinema.report.files import write_whole

fcntl = pytest.importorskip("fcntl")


def refusing(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, number):
    refusing(monkeypatch, number)
    with pytest.warns(UserWarning, match="cannot be locked .* no other process"), disk.writing(tmp_path):
        (tmp_path / "a").write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_other_errors_of_a_lock_are_not_hidden(tmp_path, monkeypatch):
    refusing(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), disk.writing(tmp_path):
        pass


def test_what_the_writer_raises_is_not_taken_for_a_lock(tmp_path):
    with pytest.raises(BlockingIOError), disk.writing(tmp_path):
        raise BlockingIOError
    with disk.writing(tmp_path), pytest.raises(InputError, match="another process"), disk.writing(tmp_path):
        pass


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    assert write_whole is disk.write_file is _files.write_file
    write_whole(tmp_path / "a", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"
