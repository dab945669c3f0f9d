"""A trained network to few values and a small file: recipe, codebooks, snapping, centres, report.

`compress_` takes a pretrained network through two phases with training data (`recipe`);
`quantize_state` needs no data (`codebooks`); `snap_` sets weights to their centres (`snap`);
`save_compressed` writes the file that `load_compressed` reads (`swsmix.codec` has the format).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from swsmix import codec
from swsmix._files import replacing
from swsmix.codec import load_compressed
from swsmix.compression.centres import refine_, tie
from swsmix.compression.codebooks import quantize_state
from swsmix.compression.recipe import Compressed, Recipe, compress_
from swsmix.compression.report import snapping_report
from swsmix.compression.snap import (
    Quantized,
    assign,
    merge_components,
    quantize,
    snap_,
    snapped_state,
)
from swsmix.prior import MixturePrior

__all__ = [
    "Compressed",
    "Quantized",
    "Recipe",
    "assign",
    "compress_",
    "load_compressed",
    "merge_components",
    "quantize",
    "quantize_state",
    "refine_",
    "save_compressed",
    "snap_",
    "snapped_state",
    "snapping_report",
    "tie",
]


def save_compressed(
    path: str | os.PathLike[str],
    model: nn.Module | Mapping[str, Tensor],
    prior: MixturePrior | None = None,
    *,
    bias_bits: int | None = None,
    progress: bool = False,
) -> int:
    """Write a network to a small file, its weights snapped to the centres of its prior.

    Args:
        path: the file; written whole or not at all.
        model: the network, which stays as it is, or a state_dict.
        prior: the prior on it; None if its weights are snapped already (or for no loss at all).
        bias_bits: snap the tensors outside the prior too, see `snapped_state`; None keeps them
            exactly.
        progress: show a progress bar over the tensors.

    Returns:
        The size of the file in bytes.

    Example:
        >>> import tempfile, torch
        >>> net = nn.Linear(100, 100)
        >>> prior = MixturePrior(net, num_components=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_compressed(f"{folder}/net.sws", net, prior)
        ...     state = load_compressed(f"{folder}/net.sws")
        >>> size < 3500, len(state["weight"].unique())  # 40,400 in float32
        (True, 4)
    """
    data = codec.encode(snapped_state(model, prior, bias_bits=bias_bits), progress=progress)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return len(data)
