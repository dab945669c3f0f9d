"""How small a compressed network is: bytes, shares, bits, and Han's format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swsmix.compression.recipe import Compressed
from swsmix.compression.snap import bits_per_weight


def sizes(decoded: dict[str, Tensor], done: Compressed, size: int) -> dict[str, Any]:
    """The three units of compression, and what the coders start from."""
    parameters = sum(t.numel() for t in decoded.values())
    nonzero = {n: int((decoded[n] != 0).sum()) for n in done.index}
    bits = {n: bits_per_weight(j) for n, j in done.index.items()}
    return {
        "float32_bytes": 4 * parameters,
        "ratio": 4 * parameters / size,
        "nonzero": nonzero,
        "weights": {n: decoded[n].numel() for n in done.index},
        "nonzero_percent": 100.0
        * sum(nonzero.values())
        / sum(decoded[n].numel() for n in done.index),
        "entropy_bits_a_weight": bits,
        "values": {n: len(decoded[n].unique()) for n in done.index},
        "han_ratio": han_ratio(decoded, done),
    }


def han_ratio(decoded: dict[str, Tensor], done: Compressed, run_bits: int = 5) -> float:
    """Compression in the format of Han et al. (2015), as we read Ullrich et al.

    Each non-zero weight costs its codebook index and its distance to the one before, both Huffman
    coded; a distance above 2^run_bits - 1 costs a filler; the codebook and the biases are float32.

    Returns:
        Float32 bits of the whole network over the bits of the format.
    """
    total = 0.0
    for name, t in decoded.items():
        if name not in done.index:
            total += 32.0 * t.numel()
            continue
        flat = t.reshape(-1)
        at = flat.nonzero().reshape(-1)
        gaps = torch.diff(at, prepend=at.new_tensor([-1])) - 1
        longest = 2**run_bits - 1
        fillers = gaps // (longest + 1)
        values, which = flat[at].unique(return_inverse=True)
        distances = torch.cat([gaps % (longest + 1), gaps.new_full((int(fillers.sum()),), longest)])
        codes = torch.cat([which, which.new_full((int(fillers.sum()),), len(values))])
        total += huffman_bits(codes) + huffman_bits(distances) + 32.0 * (len(values) + 1)
    return 32.0 * sum(t.numel() for t in decoded.values()) / total


def huffman_bits(symbols: Tensor) -> float:
    """The bits of a Huffman code of the symbols, its table not counted."""
    import heapq

    heap = torch.bincount(symbols)[torch.bincount(symbols) > 0].tolist() if len(symbols) else []
    if len(heap) == 1:
        return float(heap[0])
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return float(total)
