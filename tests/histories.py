"""A short history, written by hand."""

import torch

from swsmix.mixture import GaussianMixture
from swsmix.training.history import History


def short_history(records=3):
    history = History()
    for t in range(records):
        # Nothing is near the second centre at first.
        w = torch.tensor([-1.0, 0.0, 0.0, float(t > 0)]) * (1 + t)
        mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0 + t], [0.1, 0.2 + t])
        scalars = {"epoch": 2.0 * t, "objective": 3.0 - t, "validation_measure": float("nan")}
        history.record(scalars, {"all": (w, mixture, torch.tensor([2.5, 1.5]))})
    return history
