"""An interrupt that Python ignores, inside a finaliser, ends the work all the same."""

import signal
import sys
import time
import weakref

import pytest
import typer

from swsmix.cli._interrupts import as_exit_codes
from swsmix.problems.reproduction.signals import Terminated, terminable


class Finalised:
    """Sends a signal when it is deleted."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)
        time.sleep(0.0)  # here at the latest its handler raises, and Python ignores it


def called_back(number):
    """As a weak reference's callback does."""
    thing = {1, 2}
    keep = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    return keep


def wait():
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.01)


IGNORED = pytest.mark.parametrize("ignored", [Finalised, called_back])
NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@IGNORED
@NUMBERS
def test_a_command_ends_with_the_signals_code(number, ignored):
    hook = sys.unraisablehook
    with pytest.raises(typer.Exit) as ended, as_exit_codes():
        ignored(number)
        wait()
    assert ended.value.exit_code == 128 + number and sys.unraisablehook is hook


@IGNORED
@NUMBERS
def test_a_paper_s_run_ends_with_the_signals_exception(number, ignored):
    with pytest.raises(KeyboardInterrupt) as ended, terminable():
        ignored(number)
        wait()
    assert ended.type is (Terminated if number == signal.SIGTERM else KeyboardInterrupt)


def test_other_exceptions_in_finalisers_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with as_exit_codes():
        thing = {1}
        keep = weakref.ref(thing, lambda _: 1 / 0)
        del thing
    assert [each.exc_type for each in told] == [ZeroDivisionError] and keep() is None
