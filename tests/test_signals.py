"""Stopping: a first signal is remembered, a second ends the process, and all processes agree."""

import os
import signal
import threading
import time

import pytest
import torch.distributed as dist

from kcelectra.pretraining import signals
from kcelectra.pretraining.signals import SIGNALS, StopSignals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_the_handlers_are_given_back(number):
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with StopSignals() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed() and stop.received == number
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


def in_child(function):
    """Return the exit status of a forked process."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_signal_ends_the_process_at_once(monkeypatch):
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.05)

    def twice():
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    assert in_child(twice) == 143


def test_the_same_signal_passed_on_a_moment_later_is_no_second_one():
    def echo():
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7 if stop.agreed() else 1)

    assert in_child(echo) == 7


def test_in_another_thread_nothing_is_taken_over():
    found = []

    def enter():
        with StopSignals() as stop:
            found.append((stop.agreed(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, signal.SIG_DFL)]


def test_all_processes_stop_when_one_is_told_to(tmp_path):
    def ask(rank):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=3)
        with StopSignals() as stop:
            answers = [stop.agreed()]
            if rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            answers.append(stop.agreed())
            os._exit(9 if answers == [False, True] and stop.received == signal.SIGUSR1 else 1)

    children = []
    for rank in range(3):
        child = os.fork()
        if child == 0:
            try:
                ask(rank)
            finally:
                os._exit(2)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [9, 9, 9]
