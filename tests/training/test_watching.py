"""Training, watched while it runs: in the terminal and in TensorBoard."""

import io
import sys

import pytest
import torch

from swsmix.inspection import watch
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History

# -- while it trains --------------------------------------------------------------------------


def short_history(records=3):
    history = History()
    for t in range(records):
        # Nothing is near the second centre at first.
        w = torch.tensor([-1.0, 0.0, 0.0, float(t > 0)]) * (1 + t)
        mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0 + t], [0.1, 0.2 + t])
        scalars = {"epoch": 2.0 * t, "objective": 3.0 - t, "validation_measure": float("nan")}
        history.record(scalars, {"all": (w, mixture, torch.tensor([2.5, 1.5]))})
    return history


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


def test_tensorboard_holds_the_history_once_each(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from swsmix.training.loggers import tensorboard

    history, callback = short_history(), tensorboard(tmp_path)
    callback(2, short_history(2))
    callback(4, history)
    events = EventAccumulator(str(tmp_path), {"histograms": 0})
    events.Reload()
    scalars = {
        "loss/objective": [3, 2, 1],
        "all/mean/1": [1, 2, 3],
        "all/std/1": [0.2, 1.2, 2.2],
        "all/count/0": [2.5] * 3,
        "all/clusters": [1, 2, 2],
    }
    for name, expected in scalars.items():
        assert [e.value for e in events.Scalars(name)] == pytest.approx(expected)
        assert [e.step for e in events.Scalars(name)] == [0, 2, 4]
    assert "loss/validation_measure" not in events.Tags()["scalars"]
    histograms = [e.histogram_value for e in events.Histograms("all/weights")]
    assert [(h.min, h.max, h.num) for h in histograms] == [(-1, 0, 4), (-2, 2, 4), (-3, 3, 4)]
    assert all(sum(h.bucket) == 4 for h in histograms)


def test_without_tensorboard_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    from swsmix.training.loggers import tensorboard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "swsmix\[tensorboard\]"'):
        tensorboard(tmp_path)
