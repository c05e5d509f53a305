"""Batches of rows in one global order, whatever the number of processes and of workers."""

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from kcelectra.errors import InputError
from kcelectra.pretraining import xla
from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.packed import PackedRows
from kcelectra.pretraining.prefetching import read_ahead
from kcelectra.pretraining.signals import SIGNALS
from kcelectra.pretraining.streaming import PackedStream

T = TypeVar("T")

NUM_AHEAD = 4  # batches that are read ahead, at least
WINDOWS_AHEAD = 1.25  # of a stream, which makes the rows of a window in one go; measured: 4 batches gain nothing there


class RowLoader:
    """The batches of one process, without end, from where the data set's state is.

    The rows of a run stand in one order, each at its position. Of each `num_processes * batch_size` rows a process
    takes its `batch_size`, so that what a step sees depends neither on the number of processes nor on workers.

    Args:
        dataset: packed rows, or a stream; where its state is, the batches begin.
        collator: makes a batch of rows.
        batch_size: rows of a batch of one process.
        device: where batches are put.
        process_index: 0 to `num_processes - 1`.
        num_processes: that train together.
        num_workers: processes that read packed rows; 0 reads in a thread, as a stream always is.
        timeout: seconds to wait for a batch.
        position: of the first row, in the order of the whole run.
        skipped: positions, from `start` up to `stop`, that no step takes.

    Raises:
        InputError: a stream is to be read by workers; or, in iteration, no batch came in time.
    """

    def __init__(
        self,
        dataset: PackedRows | PackedStream,
        collator: DataCollatorForReplacedTokenDetection,
        *,
        batch_size: int,
        device: torch.device | None = None,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
        timeout: float = 3600,
        position: int = 0,
        skipped: Sequence[tuple[int, int]] = (),
    ) -> None:
        if num_workers and isinstance(dataset, PackedStream):
            raise InputError(
                f"dataloader_num_workers is {num_workers}; leave it out: comments are read ahead in a thread and "
                "tokenized on every core. Rows that recipes/pack.py wrote may be read by workers"
            )
        self.dataset, self.collator = dataset, collator
        self.batch_size, self.device = batch_size, device or torch.device("cpu")
        self.process_index, self.num_processes = process_index, num_processes
        self.num_workers, self.timeout = num_workers, timeout
        self.position, self.skipped = position, sorted(skipped)
        if isinstance(dataset, PackedStream):  # it is to know its state before what is read ahead, and in the making
            num_rows = (self._num_ahead() + 2) * num_processes * batch_size
            dataset.max_read_ahead = max(dataset.max_read_ahead, num_rows)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield batches on the device."""
        batches: Iterable[dict[str, torch.Tensor]]
        if isinstance(self.dataset, PackedStream):
            batches = map(self.collator, self._own(self._kept_rows(self.dataset)))
        else:
            batches = self._load_packed(self.dataset)
        if self.num_workers:
            batches = self._of_workers(batches)
        else:
            batches = read_ahead(map(self._pin, batches), self._num_ahead(), timeout=self.timeout)
        for batch in batches:
            yield xla.to_device(batch, self.device)

    def _of_workers(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches; what a worker says of bad input is said here, without the lines of its code."""
        try:
            yield from batches
        except InputError as error:
            said = str(error).rsplit(f"{InputError.__name__}: ", 1)[-1].strip()
            raise InputError(said) from error
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise InputError(
                f"no worker read a batch for {self.timeout:g} s; see what the disk or the network waits for, or give "
                "a higher --input_timeout"
            ) from error

    def state_after(self, num_batches: int) -> dict[str, Any]:
        """Return the state, JSON, after that many batches of this iteration, however many were read ahead."""
        position = self.position_after(num_batches)
        return {
            "position": position,
            "skipped": [[start, stop] for start, stop in self.skipped if stop > position],
            "dataset": self.dataset.state_at(position - self.position),
        }

    def position_after(self, num_batches: int) -> int:
        """Return the position behind the last row of that many batches of this iteration."""
        position, num_rows = self.position, num_batches * self.batch_size * self.num_processes
        for start, stop in self.skipped:
            if stop > position and position + num_rows > start:
                num_rows -= max(0, start - position)
                position = stop
        return position + num_rows

    def _num_ahead(self) -> int:
        if isinstance(self.dataset, PackedRows):
            return NUM_AHEAD
        rows = WINDOWS_AHEAD * self.dataset.shuffle_window
        return max(NUM_AHEAD, math.ceil(rows / (self.num_processes * self.batch_size)))

    def _is_kept(self, position: int) -> bool:
        return not any(start <= position < stop for start, stop in self.skipped)

    def _kept_rows(self, stream: PackedStream) -> Iterator[dict[str, Any]]:
        for position, row in enumerate(stream, self.position):
            if self._is_kept(position):
                yield row

    def _own(self, rows: Iterable[Any]) -> Iterator[list[Any]]:
        """Yield what this process takes of the rows of each batch."""
        rows, first = iter(rows), self.process_index * self.batch_size
        while taken := list(islice(rows, self.num_processes * self.batch_size)):
            yield taken[first : first + self.batch_size]

    def _load_packed(self, dataset: PackedRows) -> DataLoader:
        kept = filter(self._is_kept, count(self.position))
        shift = dataset.position - self.position
        return DataLoader(
            dataset,
            batch_sampler=self._own(position + shift for position in kept),
            collate_fn=self.collator,
            num_workers=self.num_workers,
            pin_memory=self._pins and self.num_workers > 0,
            timeout=self.timeout if self.num_workers else 0,
            worker_init_fn=_outlive_a_stop if self.num_workers else None,
            generator=torch.Generator(),  # else it takes its seed from the generator that dropout uses
        )

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"

    def _pin(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values.pin_memory() for name, values in batch.items()} if self._pins else batch


def _outlive_a_stop(worker: int) -> None:
    """Leave it to the run to stop: a scheduler sends its signal to all processes of a job, and workers end with it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
