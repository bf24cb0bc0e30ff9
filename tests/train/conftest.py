"""What tests of several processes share."""

from __future__ import annotations

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
