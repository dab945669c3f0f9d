"""The progress bar: every item once and in order, on standard error, or nothing at all."""

import subprocess
import sys
import types

import pytest

from swsmix._progress import watched


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("items", [[], [3, 1, 2], range(5), {"a": 1}.items()])
def test_the_items_come_as_they_are_and_standard_output_stays_empty(shown, items, capfd):
    assert list(watched(items, "[bold]label", shown=shown, transient=False)) == list(items)
    written = capfd.readouterr()
    assert written.out == ""
    assert ("[bold]label" in written.err) == shown
    assert (f"{len(items)}/{len(items)}" in written.err) == shown


def test_a_resumed_bar_counts_what_was_done_before_and_carries_its_note(capfd):
    taken = []
    bar = watched(
        iter("ab"), shown=True, total=5, done=3, note=lambda: f"taken {taken}", transient=False
    )
    for item in bar:
        taken.append(item)
    error = capfd.readouterr().err
    assert "5/5" in error and "taken ['a', 'b']" in error


def test_a_transient_bar_leaves_nothing_where_there_is_no_terminal(capfd):
    list(watched([1, 2], "label", shown=True))
    assert capfd.readouterr().err.strip() == ""


@pytest.mark.parametrize("transient", [True, False])
def test_a_notebook_gets_one_plain_line_and_no_warning(monkeypatch, capfd, transient):
    shell = type("ZMQInteractiveShell", (), {})()
    fake = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setattr("swsmix._progress._PAUSE", -1.0)
    seen = []
    items = watched(
        range(30), "label", shown=True, note=lambda: "x" * (30 - len(seen)), transient=transient
    )
    for item in items:
        seen.append(item)
    assert seen == list(range(30))
    said = capfd.readouterr().err
    assert "\x1b" not in said  # a page does not obey the terminal's codes
    assert said.count("\n") == (not transient)
    shown = ""  # what is on the line in the end
    for part in said.rstrip("\n").split("\r"):
        shown = part + shown[len(part) :]
    assert shown.strip() == ("" if transient else "label  30/30")


def test_without_a_bar_rich_is_not_loaded():
    code = (
        "import sys; from swsmix._progress import watched; list(watched([1], shown=False));"
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
