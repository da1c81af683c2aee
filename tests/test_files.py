"""Files are whole or as they were, whatever interrupts the writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from specfast.files import atomic_file, write_atomic


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = write_atomic(tmp_path / "made" / "x.json", b"old")

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["x.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from specfast.files import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half of the n")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_while_writing_leaves_the_old_file_and_the_next_write_works(tmp_path):
    path = write_atomic(tmp_path / "x.json", b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert write_atomic(path, b"new").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "x.json", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.json"]
