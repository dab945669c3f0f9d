"""What lengths by row and column save over one length per value and tensor.

    python figures/pretrained_contexts.py [NETWORK ...]

`quantize_state` prices a value by how common it is in its tensor, and then by how common it is in
the class of its row and column (`swsmix.compression.in_context`). Here are whole files without and
with the second stage, of the same loss, and seconds of the processor: of finding values and
lengths, and of the whole, with coding. `unlike-rows` is made here: four matrices whose rows have
scales of e^0 to e^2.
"""

import sys
import time
from collections.abc import Mapping
from typing import NamedTuple
from unittest import mock

import torch
from pretrained_methods import small
from pretrained_networks import NETWORKS, MissingError
from torch import Tensor

from swsmix.codec import encode
from swsmix.compression import quantize_state, rate
from swsmix.compression.codebooks import snapped

LOSSES = (0.005, 0.02, 0.1, 0.3)


class Made(NamedTuple):
    """A file.

    Attributes:
        size: in bytes.
        loss: the mean over weights of their tensor's relative error, as `quantize_state` has it.
        finding: seconds for values and assignment.
        whole: seconds with coding.
    """

    size: int
    loss: float
    finding: float
    whole: float


def unlike_rows() -> dict[str, Tensor]:
    """Matrices whose rows have unlike scales."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for k in range(4):
        scale = 0.02 * (2.0 * torch.rand(512, 1, generator=generator)).exp()
        state[f"{k}.weight"] = scale * torch.randn(512, 512, generator=generator)
    return state


def made(state: Mapping[str, Tensor], loss: float) -> Made:
    start = time.process_time()
    found = quantize_state(state, loss=loss)
    finding = time.process_time() - start
    new = snapped(state, found)
    size = len(encode(new))
    whole = time.process_time() - start
    lost = count = 0.0
    for name in found:
        w = state[name].double()
        error = (w - new[name].double()).square().sum() / (w - w.mean()).square().sum()
        lost += w.numel() * float(error)
        count += w.numel()
    return Made(size, lost / count, finding, whole)


def without_contexts(state: Mapping[str, Tensor], loss: float) -> Made:
    with mock.patch.object(rate, "cells_where_it_pays", return_value={}):
        return made(state, loss)


def main(names: list[str]) -> None:
    print("| network | loss | bytes before | bytes | change | seconds before | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    encode({"w": torch.randn(99, 99).round()})  # compiled before it is timed
    for name in names:
        try:
            state = unlike_rows() if name == "unlike-rows" else small(NETWORKS[name]().state())
        except MissingError as error:
            print(f"{name}: skipped: {error}")
            continue
        for loss in LOSSES:
            after = made(state, loss)
            before = without_contexts(state, after.loss)  # at the loss that was reached
            change = f"{100.0 * (after.size / before.size - 1.0):+.2f} %"
            seconds = (f"{m.finding:.2f} of {m.whole:.2f}" for m in (before, after))
            row = f"{after.loss:.4f} | {before.size:,} | {after.size:,} | {change}"
            print(f"| {name} | {row} | {' | '.join(seconds)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["cnn", "magika", "unlike-rows"])
