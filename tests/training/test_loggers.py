"""The history in TensorBoard."""

import sys

import pytest
from histories import short_history


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
