"""How the cost of something grows with its input, told apart by factors: other processes run on a machine too."""

from collections.abc import Callable
from time import process_time


def is_linear(work: Callable[[str], object], short: str, long: str) -> bool:
    """Return whether a text 16 times as long costs less than 64 times the processor time; a square costs 256 times.

    Below 50 ms there is only noise to compare.
    """
    assert len(long) >= 15 * len(short)
    for _ in range(4):
        seconds = []
        for text in (short, long):
            start = process_time()
            work(text)
            seconds.append(process_time() - start)
        if seconds[1] < max(64 * seconds[0], 0.05):
            return True
    return False
