"""Networks and settings whose files have many sections and blocks."""

import numpy as np
import torch
from damage import as_raw
from sparse_weights import hashed, structured

from swsmix.codec import blocks, choosing, encoder


def make_small(monkeypatch):
    """Sections and blocks so small that a test has many of them."""
    monkeypatch.setattr(encoder, "_LARGE", 400)
    monkeypatch.setattr(blocks, "WEIGHTS", 300)
    monkeypatch.setattr(blocks, "WEIGHTS_IN_CONTEXT", 1000)
    monkeypatch.setattr(choosing, "_TRIAL", 400)


def same(a, b):
    return list(a) == list(b) and all(as_raw(a[n]) == as_raw(b[n]) for n in a)


def numbers(*shape, values=7, salt=1):
    """Deterministic component numbers as floats, the commonest at 0."""
    return torch.from_numpy(np.asarray(np.floor(values * hashed(*shape, salt=salt) ** 2))).float()


def network():
    """Tensors of every kind: blocks, in contexts and not, shared streams, books, copies, values."""
    noise = torch.from_numpy(hashed(900, salt=3) - 0.5).float()
    return {
        "first.weight": structured(40, 60, 1),
        "first.bias": noise[:8],
        "second.weight": structured(150, 40, 2),
        "second.bias": numbers(50, values=3),
        "tied.weight": structured(40, 60, 1),
        "third.weight": numbers(64, 5, 3, 3, values=5),
        "same_book.weight": numbers(64, 45, values=5, salt=9),
        "plain": noise.view(30, 30),
        "grid": torch.from_numpy(np.rint(hashed(700, salt=4) * 9000)).double() / 64,
        "tail.bias": noise[5:12],
        "count": torch.tensor(7),
        "zeros": torch.zeros(200, 30),
        "long": numbers(4000, values=9, salt=5),
    }
