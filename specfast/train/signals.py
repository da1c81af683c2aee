"""Stopping on SIGTERM and SIGINT: between two updates, not within one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path


class TrainingInterrupted(KeyboardInterrupt):
    """A run was stopped by a signal after it had saved its state; the same call again goes on from there.

    Attributes:
        signal: the signal's number; a command's exit code is 128 more.
        step: updates done; checkpoint: the file that holds the state.
    """

    def __init__(self, number: int, step: int, checkpoint: Path):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the state is in {checkpoint}")
        self.signal, self.step, self.checkpoint = number, step, checkpoint


class StopSignals:
    """While active, SIGTERM and SIGINT set ``received`` to their number instead of ending the process.

    With ``insist``, a second SIGINT ends it at once, by KeyboardInterrupt. Outside of the main thread, where Python
    takes no signals, nothing changes.
    """

    def __init__(self, *, insist: bool):
        self.received: int | None = None
        self._insist = insist
        self._previous = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self._insist and self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
