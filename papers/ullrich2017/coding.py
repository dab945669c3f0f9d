#!/usr/bin/env python3
"""What the coder's contexts and the sorted neurons save, on the compressed files that are kept.

    papers/ullrich2017/coding.py     a table of the rows, and one line of coding.jsonl for each file

Each file is decoded and written again: without context models; with its inner neurons in random
orders, of which the mean is taken; and with neither. The network's answers are the same each time,
so no images are read.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # import `papers` and `swsmix` from this checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from papers.ullrich2017 import cifar, verify, work
from swsmix.codec import encode, load_compressed

HERE = Path(__file__).resolve().parent
KEPT = HERE / "coding.jsonl"
ORDERS = 3


def measured(file: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The bytes of a kept file, and without contexts, without sorting, and without both.

    Raises:
        RuntimeError: if writing it again gives other bytes.
    """
    state = load_compressed(file)
    size = file.stat().st_size
    if len(encode(state)) != size:
        raise RuntimeError(
            f"{file.name} has {size} bytes, and {len(encode(state))} if written anew"
        )
    net = verify.network(result)
    generator = torch.Generator().manual_seed(0)
    orders = [shuffled(net, state, list(pairs(result)), generator) for _ in range(ORDERS)]
    return {
        "file": file.name,
        "size_bytes": size,
        "without_contexts": len(encode(state, contexts=False)),
        "without_sorting": round(statistics.mean(len(encode(s)) for s in orders)),
        "without_both": round(statistics.mean(len(encode(s, contexts=False)) for s in orders)),
    }


def pairs(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The layers whose neurons the next one alone takes, and that one."""
    if result["kind"] == "cifar10":
        for block in range(cifar.ROWS[result["net"]].blocks):
            yield f"blocks.{block}.conv1", f"blocks.{block}.conv2"
    else:
        for layer, following, _ in work.PAIRS[result["net"]]:
            yield layer, following


@torch.no_grad()
def shuffled(
    net: nn.Module,
    state: dict[str, Tensor],
    layers: list[tuple[str, str]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The same network with its inner neurons in a random order.

    Returns:
        A state_dict; the network holds it too.
    """
    net.load_state_dict(state)
    for layer, following in layers:
        first, second = net.get_submodule(layer), net.get_submodule(following)
        order = torch.randperm(len(first.weight), generator=generator)
        first.weight.copy_(first.weight[order])
        if first.bias is not None:
            first.bias.copy_(first.bias[order])
        taken = second.weight.flatten(1).view(len(second.weight), len(order), -1)
        second.weight.copy_(taken[:, order].reshape(second.weight.shape))
    return {name: t.detach().clone().contiguous() for name, t in net.state_dict().items()}


def main() -> None:
    """Measure all kept files."""
    lines = []
    for file in sorted((HERE / "results").glob("*.sws")):
        lines.append(measured(file, json.loads(file.with_suffix(".json").read_text())))
        print(json.dumps(lines[-1]), flush=True)
    KEPT.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
