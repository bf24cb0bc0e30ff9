"""A way to stop a long job at a point where its state can be saved."""

from __future__ import annotations

import signal


class Interrupted(Exception):
    """An exception of ``StopSignal.check`` after SIGINT or SIGTERM, with the signal's name."""


class StopSignal:
    """A context that turns the first SIGINT or SIGTERM into a flag; a second one acts as usual.

    A signal that the process ignores stays ignored, as SIGINT is behind a shell script's ``&``.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def check(self) -> None:
        """Raises ``Interrupted`` if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received.name)

    def _receive(self, number: int, frame) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
