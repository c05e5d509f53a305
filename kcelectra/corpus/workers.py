"""Tasks over processes: a killed worker is noticed and its task is done again."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, cast

import pyarrow as pa

from kcelectra.errors import InputError

logger = logging.getLogger(__name__)

MAX_DEATHS = 3  # in a row, with no task finished between
LOST = (EOFError, OSError)  # of the pipe to a worker that was killed


def run_tasks(
    function: Callable[[str, int], Any],
    work_dir: str,
    tasks: Iterable[int],
    *,
    num_workers: int,
    on_done: Callable[[int, Any], None],
) -> None:
    """Call `function(work_dir, task)` for each task, in processes that end with the last one.

    Each worker has a pipe of its own, as `ProcessPoolExecutor` waits for ever once a worker is killed that holds the
    lock of the queue they share (seen: one pool in seven, killed as it shuts down). A worker ends when its pipe does,
    so none outlives this process.

    Args:
        function: safe to call again after it was killed.
        work_dir: its first argument.
        tasks: its second arguments.
        num_workers: >= 1, processes.
        on_done: called with each task and its result, in the order in which they come.

    Raises:
        InputError: workers were killed again and again, the disk is full, or a task raised it.
    """
    left, deaths = sorted(tasks, reverse=True), 0
    idle: list[tuple[Connection, BaseProcess]] = []
    busy: dict[Connection, tuple[BaseProcess, int]] = {}
    try:
        idle.extend(_start_worker(function, work_dir) for _ in range(min(num_workers, len(left))))
        while left or busy:
            while left and idle:
                pipe, process = idle.pop()
                busy[pipe] = process, left.pop()
                try:
                    pipe.send(busy[pipe][1])
                except OSError:
                    pass  # it was killed, which `recv` will tell
            for pipe in cast(list[Connection], wait(list(busy))):
                process, task = busy.pop(pipe)
                try:
                    result = pipe.recv()
                except LOST:
                    deaths += 1
                    if deaths > MAX_DEATHS:
                        raise InputError(
                            f"workers were killed {deaths} times in a row, perhaps for want of memory; the same "
                            "command with fewer --num_workers goes on where this one ended"
                        ) from None
                    logger.warning("a worker was killed; its task is done again")
                    left.append(task)
                    idle.append(_start_worker(function, work_dir))
                    continue
                if isinstance(result, BaseException):
                    raise result
                deaths = 0
                idle.append((pipe, process))
                on_done(task, result)
    except OSError as error:
        raise InputError(f"{error}; the same command goes on where this one ended") from error
    finally:
        for pipe, process in [*idle, *((pipe, process) for pipe, (process, _) in busy.items())]:
            pipe.close()
            process.kill()
            process.join()


def _start_worker(function: Callable[[str, int], Any], work_dir: str) -> tuple[Connection, BaseProcess]:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(function, work_dir, theirs), daemon=True)
    with _hidden_main():
        process.start()
    theirs.close()
    return ours, process


def _serve(function: Callable[[str, int], Any], work_dir: str, pipe: Connection) -> None:
    pa.set_memory_pool(pa.system_memory_pool())
    while True:
        try:
            task = pipe.recv()
        except LOST:
            return  # the process that started it has ended
        try:
            result = function(work_dir, task)
        except Exception as error:  # raised where the tasks come from
            result = error
        pipe.send(result)


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep new processes from running the caller's script again, which then needs no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
