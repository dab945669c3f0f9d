"""Training, shown in the terminal while it runs."""

import io

import pytest
import torch
from histories import short_history

from swsmix.inspection import watch
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History


@pytest.mark.parametrize("terminal", [True, False])
def test_the_live_view_shows_the_newest_record(terminal):
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with pytest.raises(KeyboardInterrupt), watch(console) as callback:
        for records in (1, 2, 3):
            callback(records, short_history(records))
        raise KeyboardInterrupt  # it leaves the last view, and the terminal as it was
    shown = console.file.getvalue()
    assert ("epoch 0" in shown) == terminal  # what is no terminal is not filled with old views
    last = shown[shown.rindex("epoch 4") :]
    assert "objective 1" in last and "nan" not in last
    assert "▲" in last and "2.2" in last and "62.5 %" in last


@pytest.mark.parametrize("width", [30, 46, 200])
def test_the_live_histogram_fits_the_terminal(width):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    w = torch.tensor([-1.0, 0.0, 1.0])
    mixture = GaussianMixture([0.3, 0.4, 0.3], [-1.0, 0.0, 1.0], [0.1, 0.1, 0.1])
    history = History()
    history.record({"epoch": 0.0}, {"all": (w, mixture, torch.ones(3))})
    with watch(console) as callback:
        callback(0, history)
    lines = console.file.getvalue().splitlines()
    (marks,) = [line for line in lines if "▲" in line]
    assert marks.count("▲") == 3 and len(marks.rstrip()) <= min(width, 72)
