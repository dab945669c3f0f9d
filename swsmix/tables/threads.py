"""Many weights on several threads: as many as torch had when the call was made.

The threads share no sums, and their ranges end where chunks end: the results are the same to the
last bit, however many threads there are. A process keeps its threads: on a busy machine a new one
stays for milliseconds on the processor where it was made. A forked process makes its own.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from swsmix.tables.scratch import CHUNK

T = TypeVar("T")
LEAST = 1 << 18  # weights for each thread: fewer take less time than its start
_ASKED = contextvars.ContextVar("asked", default=0)


@contextlib.contextmanager
def one_thread_for_torch() -> Iterator[None]:
    """Let torch compute in one thread, and remember how many it had for `over_ranges`.

    Many short operations on cached chunks gain nothing from a second thread, but wait for it: up
    to a hundred times longer on a busy machine.
    """
    threads = torch.get_num_threads()
    token = _ASKED.set(_ASKED.get() or threads)  # in a call made by another, that one's
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
        _ASKED.reset(token)


def over_ranges(n: int, work: Callable[[int, int], T], least: int = 0) -> list[T]:
    """`work(start, stop)` for ranges that cover 0 .. n - 1, each on a thread of its own.

    Args:
        n: how many weights.
        work: works on a range; it must not hold Python's lock for long.
        least: weights for each thread, if more than usual.

    Returns:
        What each range gave, in their order.
    """
    chunks = -(-n // CHUNK)
    threads = max(1, min(_ASKED.get(), n // max(LEAST, least)))
    ends = [min(n, chunks * i // threads * CHUNK) for i in range(threads + 1)]
    if threads == 1:
        return [work(0, n)]
    inference = torch.is_inference_mode_enabled()

    def alike(start: int, stop: int) -> T:  # a new thread has torch's defaults
        with torch.inference_mode(inference), torch.no_grad():
            return work(start, stop)

    own, *others = itertools.pairwise(ends)
    futures: list[Future[T]] = []
    try:
        with contextlib.suppress(RuntimeError):  # where Python ends, no thread can be started
            pool = _pool(threads - 1)
            for each in others:
                context = contextvars.copy_context()  # which says what is compiled
                futures.append(pool.submit(lambda c, ends: c.run(alike, *ends), context, each))
        first = work(*own)
    finally:  # after an error and an interrupt too, nothing goes on writing
        wait(futures)
    found = [first, *(future.result() for future in futures)]
    return found + [work(*each) for each in others[len(futures) :]]


_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    """This process's own: those of the process that it was forked from have no threads here."""
    key = os.getpid(), threads
    return _POOLS.get(key) or _POOLS.setdefault(key, ThreadPoolExecutor(threads))
