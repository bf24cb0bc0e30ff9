"""What tests of several processes and of signals share."""

from __future__ import annotations

import signal
import socket

import pytest


@pytest.fixture
def port(monkeypatch):
    """A free port for torchrun, and one thread for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PET_MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("PET_MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def default_sigint():
    """SIGINT as a terminal's programs have it, and those that the test starts.

    A shell starts background jobs with SIGINT ignored, and Python then leaves it so.
    """
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, previous)
