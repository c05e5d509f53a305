"""Tasks over processes: a killed worker is noticed and its tasks are done again."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from types import ModuleType
from typing import Any

import pyarrow as pa

from kcelectra.errors import InputError

logger = logging.getLogger(__name__)

MAX_DEATHS = 3  # in a row, with no task finished between


def run_tasks(
    function: Callable[[str, int], Any],
    work_dir: str,
    tasks: Iterable[int],
    *,
    num_workers: int,
    on_done: Callable[[int, Any], None],
) -> None:
    """Call `function(work_dir, task)` for each task, in processes that end with the last one.

    Args:
        function: safe to call again after it was killed.
        work_dir: its first argument.
        tasks: its second arguments.
        num_workers: >= 1, processes.
        on_done: called with each task and its result, in the order in which they come.

    Raises:
        InputError: workers were killed again and again, the disk is full, or a task raised it.
    """
    left, deaths = set(tasks), 0
    while left:
        context = get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_prepare_process) as pool:
            try:
                with _hidden_main():  # processes start as tasks are submitted
                    futures = {pool.submit(function, work_dir, task): task for task in sorted(left)}
                for future in as_completed(futures):
                    on_done(futures[future], future.result())
                    left.discard(futures[future])
                    deaths = 0
            except BrokenProcessPool:
                deaths += 1
                if deaths > MAX_DEATHS:
                    raise InputError(
                        f"workers were killed {deaths} times in a row, perhaps for want of memory; the same command "
                        "with fewer --num_workers or a smaller --part_mb goes on where this one ended"
                    ) from None
                logger.warning("a worker was killed; its task and %d others are done again", len(left) - 1)
            except BaseException as error:
                pool.shutdown(cancel_futures=True)
                if isinstance(error, OSError):
                    raise InputError(f"{error}; the same command goes on where this one ended") from error
                raise


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep new processes from running the caller's script again, which then needs no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _prepare_process() -> None:
    """Let Arrow free what it no longer needs (its own allocator keeps 40 MiB), and end when the parent does."""
    pa.set_memory_pool(pa.system_memory_pool())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
