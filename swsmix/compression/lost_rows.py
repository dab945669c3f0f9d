"""Rows that quantising by one price per tensor loses although a batch norm would scale them up.

A bit is worth the same squared error wherever in a tensor it is spent, so a row that is much
smaller than the others of its tensor is cheaply set to a single value. Mostly that is right: what
such a row passes on is small too. Behind it a batch norm makes it as large as the others: the
network then loses a channel whose weights seemed to be worth nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from swsmix.compression.matrices import is_quantised
from swsmix.compression.snap import Quantized

_EPSILON = 1e-5  # of batch norms: channels of less variance stay small


def normalised(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The matrices that a batch norm seems to follow: name -> name of its running variance.

    In the order of the state_dict, the last matrix before it with as many rows.

    Args:
        state: name -> tensor.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16))
        >>> normalised(net.state_dict())
        {'0.weight': '1.running_var'}
    """
    found = {}
    last: tuple[str, int] | None = None
    for name, t in state.items():
        if is_quantised(t):
            last = name, len(t)
        elif name.endswith("running_var") and last is not None and last[1] == t.numel():
            found[last[0]] = name
    return found


@torch.no_grad()
def lost_rows(t: Tensor, found: Quantized, variance: Tensor) -> int:
    """How many rows became a single value that were more, and whose outputs vary.

    Args:
        t: the matrix (rows, ...).
        found: its codebook and index.
        variance: the running variance of each row's output (rows,).
    """
    w, index = t.reshape(len(t), -1), found.index.reshape(len(t), -1)
    least, most = index.aminmax(dim=1)
    below, above = w.aminmax(dim=1)
    lost = (least == most) & (above > below) & (variance.to(w.device) > _EPSILON)
    return int(lost.sum())


def warn_of_lost_rows(lost: Mapping[str, tuple[int, int]]) -> None:
    """Warn if there are any.

    Args:
        lost: name -> rows lost, rows.
    """
    named = [f"{n} ({k:,} of {rows:,})" for n, (k, rows) in lost.items() if k]
    if not named:
        return
    more = f" and {len(named) - 3} more tensors" if len(named) > 3 else ""
    warnings.warn(
        f"rows were set to a single value although a batch norm makes them as large as others: "
        f"{', '.join(named[:3])}{more}. Fold the batch norms first "
        "(swsmix.compression.fold_batch_norms_), ask for a smaller loss, or quantise with inputs "
        "(swsmix.compression.quantize_)",
        stacklevel=3,
    )
