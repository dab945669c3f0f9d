"""Interrupts that come while Python tidies up: it would ignore them, and the work would go on."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS = 0.05  # until an interrupt is sent again


@contextmanager
def interrupts_again(terminated: type[KeyboardInterrupt]) -> Iterator[None]:
    """Send an interrupt again that Python has ignored, since it came inside a finaliser.

    What a signal's handler raises in `__del__`, or in a callback of a weak reference, is only
    printed.

    Args:
        terminated: what SIGTERM's handler raises; any other KeyboardInterrupt is SIGINT's.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = sys.unraisablehook
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hook(ignored: Any) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        number = signal.SIGTERM if issubclass(ignored.exc_type, terminated) else signal.SIGINT
        if (handler := handlers[number]) is not None:  # else it is not Python's
            signal.signal(number, handler)  # that of a first signal
        # Later, when the finaliser and this function have ended.
        timer = threading.Timer(_SECONDS, _thread.interrupt_main, (number,))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
