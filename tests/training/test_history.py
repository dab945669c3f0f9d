"""Histories as flat tensors and back."""

import cases
import pytest
import torch

from swsmix.training.history import History


def test_histories_round_trip_with_dotted_and_slashed_group_names():
    mixture = cases.mixtures()["typical"]
    history = History()
    for epoch in range(3):
        history.record(
            {"epoch": epoch, "data_loss": float("nan")},
            {g: (cases.weights(), mixture, torch.ones(3)) for g in ("fc1.weight", "a/b", "all")},
        )
    again = History.from_tensors(history.to_tensors())
    assert again.groups == history.groups and again.scalars["epoch"] == [0, 1, 2]
    for group in history.groups:
        assert torch.equal(again.initial[group], history.initial[group])
        for name in history.series[group]:
            assert torch.equal(again.stacked(group, name), history.stacked(group, name))
    with pytest.raises(KeyError, match=r"fc1\.weight"):
        history.stacked("fc2", "mean")
    with pytest.raises(KeyError, match="bin_counts"):
        history.stacked("all", "colour")
