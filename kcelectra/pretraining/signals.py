"""Stop at a step boundary, in all processes at the same step, when any of them is told to."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM ended, whichever signal came
ECHO_SECONDS = 3  # torchrun passes on to its processes what their whole group has been sent already


class StopSignals:
    """Remembers SIGTERM and SIGUSR1 while it is entered; a second one ends the process at once.

    Slurm sends either before a job's time is over, a cloud sends SIGTERM before it takes a spot machine.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # by any process, once they have agreed
        self._first = 0.0  # when this process was told
        self._before: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> "StopSignals":
        """Take the signals over; Python allows it in the main thread alone, elsewhere nothing is done."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any process was told to stop; each process must ask, and all get the same answer.

        Processes ask each other on the CPU, so that no accelerator is waited for.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self.received is not None
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        number = torch.tensor(int(self.received or 0))
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        if number:
            self.received = signal.Signals(int(number))
        return bool(number)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._first and time.monotonic() > self._first + ECHO_SECONDS:
            os._exit(EXIT_STATUS)
        self._first = self._first or time.monotonic()
        self.received = self.received or signal.Signals(number)
