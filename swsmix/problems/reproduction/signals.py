"""What ends a run: SIGTERM as Ctrl-C, with the exit codes 143 and 130, and a worker's parent.

Nothing here is slow to import, since a signal may come while a run's program imports the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from swsmix._finalisers import interrupts_again

OF_INTERRUPTED, OF_TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as by a cluster's scheduler."""


def end_quietly() -> None:
    """Until `terminable`, let a signal end the process: an import has nothing to tidy up."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is usual:  # else it is ignored, as by nohup
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextmanager
def terminable() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, and SIGTERM `Terminated`; a second SIGTERM does nothing.

    Outside the main thread, which alone gets signals, it does nothing.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # not while the run tidies up
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if before[signal.SIGTERM] is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, terminate)
    try:
        with interrupts_again(Terminated):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin_worker() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the parent; end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
