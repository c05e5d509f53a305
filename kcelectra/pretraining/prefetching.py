"""Read ahead in a thread."""

import logging
from collections.abc import Iterable, Iterator
from queue import Empty, Queue
from threading import Event, Thread, current_thread
from typing import Any, TypeVar

from kcelectra.errors import InputError

T = TypeVar("T")
WARN_SECONDS = 60.0  # assumption: no window of rows takes so long to make

logger = logging.getLogger(__name__)


def read_ahead(items: Iterable[T], num_items: int, *, timeout: float | None = None) -> Iterator[T]:
    """Yield items that a thread reads ahead, from the moment the first is asked for until this is closed or collected.

    What the thread does in the interpreter takes turns with the reader; tokenising, which lets go of it, does not.

    Args:
        items: read by the thread alone.
        num_items: >= 1, that may wait to be taken.
        timeout: seconds to wait for an item; without end if None.

    Raises:
        InputError: no item came in time. What `items` raises comes out here as it is.
    """
    waiting: Queue[tuple[str, Any]] = Queue(num_items)
    is_closed, is_stuck = Event(), False
    # a daemon: while it waits for a source that is stuck, the process must be able to end
    thread = Thread(target=_read, args=(items, waiting, is_closed), name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, value = _take(waiting, timeout)
            except Empty:
                is_stuck = True
                raise InputError(
                    f"nothing could be read for {timeout:g} s; see what the disk or the network waits for, or give a "
                    "larger --input_timeout"
                ) from None
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        is_closed.set()
        while not waiting.empty():  # the thread may be waiting for room
            waiting.get()
        if not is_stuck and thread is not current_thread():  # where the garbage collector may call this
            thread.join()


def _take(waiting: "Queue[tuple[str, Any]]", timeout: float | None) -> tuple[str, Any]:
    """Return the next item; warn while it does not come, and raise `Empty` once the time is over."""
    waited = 0.0
    while True:
        seconds = WARN_SECONDS if timeout is None else min(WARN_SECONDS, timeout - waited)
        try:
            return waiting.get(timeout=seconds)
        except Empty:
            waited += seconds
            if timeout is not None and waited >= timeout:
                raise
            logger.warning("nothing could be read for %d s; the disk or the network may be stuck", waited)


def _read(items: Iterable[Any], waiting: "Queue[tuple[str, Any]]", is_closed: Event) -> None:
    try:
        for item in items:
            waiting.put(("item", item))
            if is_closed.is_set():
                return
        waiting.put(("end", None))
    except BaseException as error:  # whatever it is, the reader gets it
        waiting.put(("error", error))
