"""A compressed file from a network and its prior."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from swsmix import codec
from swsmix._files import replacing
from swsmix.compression.snap import snapped_state
from swsmix.prior import MixturePrior


def save_compressed(
    path: str | os.PathLike[str],
    model: nn.Module | Mapping[str, Tensor],
    prior: MixturePrior | None = None,
    *,
    bias_bits: int | None = None,
    distortion: float = 1.0,
    progress: bool = False,
) -> int:
    """Write a network to a small file, its weights snapped to the centres of its prior.

    Args:
        path: the file; written whole or not at all.
        model: the network, which stays as it is, or a state_dict.
        prior: the prior on it. With None no weight is changed; use it if they are snapped already.
        bias_bits: snap the tensors outside the prior too, see `snapped_state`; None keeps them
            exactly.
        distortion: components merge where that moves no weight by more than so many stds of its
            component, see `swsmix.snap_`; 0 merges none.
        progress: show a progress bar over the tensors.

    Returns:
        The size of the file in bytes.

    Example:
        >>> import tempfile, torch
        >>> from swsmix.compression import load_compressed
        >>> net = nn.Linear(100, 100)
        >>> prior = MixturePrior(net, num_components=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_compressed(f"{folder}/net.sws", net, prior)
        ...     state = load_compressed(f"{folder}/net.sws")
        >>> size < 3500, len(state["weight"].unique())  # 40,400 bytes in float32
        (True, 4)
    """
    state = snapped_state(model, prior, bias_bits=bias_bits, distortion=distortion)
    with replacing(path) as temporary, temporary.open("wb") as file:
        return codec.encode_to(file, state, progress=progress)
