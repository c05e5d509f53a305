"""Claims about reading ahead: the same items, only sooner, and nothing is left behind when it ends."""

import gc
import os
import threading
import time
import traceback
from itertools import count

import pytest

from kcelectra.errors import InputError
from kcelectra.pretraining import prefetching
from kcelectra.pretraining.prefetching import read_ahead

LONG = 30  # seconds after which a test gives up waiting


def num_threads():
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert num_threads() == 0
    yield
    assert num_threads() == 0


@pytest.mark.parametrize("num_items", [1, 2, 100])
@pytest.mark.parametrize("length", [0, 1, 50])
def test_the_items_are_those_of_the_iterable_in_its_order(num_items, length):
    assert list(read_ahead(range(length), num_items)) == list(range(length))


def test_items_may_be_anything():
    items = [None, "end", ("error", ValueError("no error, an item")), StopIteration, ()]
    assert list(read_ahead(items, 2)) == items


def test_so_many_items_are_read_ahead_and_no_more():
    read, has_read = [], threading.Semaphore(0)

    def items():
        for number in count():
            read.append(number)
            has_read.release()
            yield number

    ahead = read_ahead(items(), 3)
    assert next(ahead) == 0
    for _ in range(5):  # one was taken, three wait, and one waits for room
        assert has_read.acquire(timeout=LONG)
    time.sleep(0.05)
    assert read == [0, 1, 2, 3, 4]
    ahead.close()


def test_nothing_is_read_before_the_first_item_is_asked_for():
    ahead = read_ahead(map(pytest.fail, "x"), 1)
    assert num_threads() == 0
    ahead.close()


def test_an_error_comes_after_the_items_before_it_with_its_traceback():
    def items():
        yield 1
        raise InputError("line 7 is bad")

    ahead = read_ahead(items(), 10)
    assert next(ahead) == 1
    with pytest.raises(InputError, match="line 7 is bad") as caught:
        next(ahead)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].line == 'raise InputError("line 7 is bad")'
    assert list(ahead) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_that_is_no_exception_does_not_leave_the_reader_waiting(error):
    def items():
        raise error
        yield

    with pytest.raises(error):
        next(read_ahead(items(), 1, timeout=LONG))


@pytest.mark.parametrize("num_items", [1, 5])
@pytest.mark.parametrize("end", ["closed", "collected", "left by an error"])
def test_the_thread_ends_and_closes_its_iterable_when_the_reader_is(num_items, end):
    closed = []

    def items():
        try:
            yield from count()
        finally:
            closed.append(True)

    ahead = read_ahead(items(), num_items)
    assert next(ahead) == 0
    assert num_threads() == 1
    if end == "closed":
        ahead.close()
    elif end == "left by an error":
        with pytest.raises(ZeroDivisionError):
            ahead.throw(ZeroDivisionError)
    del ahead
    gc.collect()
    assert num_threads() == 0
    assert closed == [True]


def test_an_iterable_that_is_stuck_is_an_input_error_in_time_that_names_the_option():
    resume = threading.Event()

    def items():
        yield 1
        resume.wait(LONG)
        yield 2

    ahead = read_ahead(items(), 1, timeout=0.1)
    assert next(ahead) == 1
    with pytest.raises(InputError, match=r"nothing could be read for 0\.1 s; .*--input_timeout"):
        next(ahead)
    resume.set()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
    thread.join(LONG)


def test_an_item_that_comes_in_time_is_no_error():
    def items():
        for number in range(3):
            time.sleep(0.05)
            yield number

    assert list(read_ahead(items(), 1, timeout=LONG)) == [0, 1, 2]


def test_it_can_be_made_before_a_fork_and_read_after_it():
    ahead = read_ahead(range(1000), 3)
    child = os.fork()
    if child == 0:
        os._exit(0 if list(ahead) == list(range(1000)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(ahead) == list(range(1000))


def test_a_reader_that_its_own_thread_collects_ends():
    is_dropped = threading.Event()

    def items():
        yield 0
        is_dropped.wait(LONG)
        gc.collect()
        yield 1

    cycle = {"ahead": read_ahead(items(), 1)}
    cycle["self"] = cycle
    assert next(cycle["ahead"]) == 0
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
    gc.disable()
    try:
        del cycle
        is_dropped.set()
        thread.join(LONG)
    finally:
        gc.enable()
    assert not thread.is_alive()


def test_a_source_that_stalls_is_warned_of_before_the_time_is_over(monkeypatch, caplog):
    monkeypatch.setattr(prefetching, "WARN_SECONDS", 0.05)
    stalled = threading.Event()
    with pytest.raises(InputError, match=r"nothing could be read for 0\.12 s"):
        list(read_ahead(iter(stalled.wait, True), 1, timeout=0.12))
    assert [record.message[:36] for record in caplog.records] == ["nothing could be read for 0 s; the d"] * 2
    stalled.set()
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(LONG)
