"""Where the bytes of compressed networks are: python tests/codec_sizes.py FILE...

Takes any checkpoint (a compressed file, safetensors, a run folder), of snapped weights. For each
tensor: what it takes in the file, its component numbers' bytes, their zero-order entropy (each
tensor's own, tables of counts not included) and the share of it that the contexts save. Seconds
are processor time. `--sort` first folds dead neurons and sorts the others (see
`swsmix.compression.transforms`) in LeNet-300-100 and LeNet-5-Caffe; `--benchmark` encodes and
decodes a network of 25 million made-up weights instead.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from swsmix.codec import decode, encode, sizes
from swsmix.compression.transforms import fold_dead_neurons_, sort_neurons_
from swsmix.inspection import checkpoints
from swsmix.problems import nets

NETS = {
    "fc3.weight": (nets.lenet_300_100, ("fc1", "fc2", "fc3")),
    "conv1.weight": (nets.lenet_5_caffe, ("conv1", "conv2", "fc1", "fc2")),
}


def folded_and_sorted(state):
    """The same network with dead neurons folded into biases, and the others in order."""
    build, layers = next(NETS[name] for name in NETS if name in state)
    net = build()
    net.load_state_dict(state)
    for layer, following in zip(layers, layers[1:], strict=False):
        between = torch.relu if layer.startswith("fc") else torch.nn.Identity()
        fold_dead_neurons_(net, layer, following, between)
        sort_neurons_(net, layer, following)
    return {name: t.contiguous() for name, t in net.state_dict().items()}


def made_up():
    """Six matrices of 2048 x 2048, 2 % of their weights not zero, in rows of unlike density."""
    rng = np.random.default_rng(0)
    state = {}
    for i in range(6):
        density = rng.random(2048)[:, None] ** 3 * rng.random(2048) ** 2 * 0.24
        flags = rng.random((2048, 2048)) < density
        values = rng.choice([-2.0, -1.0, 1.0, 2.0], flags.shape)
        state[f"layers.{i}.weight"] = torch.from_numpy(np.where(flags, values, 0.0)).float()
    return state


def lines(label, state):
    """The table of one network."""
    start = time.process_time()
    data = encode(state)
    middle = time.process_time()
    back = decode(data)
    end = time.process_time()
    assert all(torch.equal(back[name], t) for name, t in state.items())
    times = f"{middle - start:.1f} s to encode, {end - middle:.1f} s to decode"
    yield f"{label}: {len(data):,} bytes, {times}"
    heads = "weights", "not 0", "K", "bytes", "index", "entropy", "saved %"
    yield "  {:16} {:>10} {:>8} {:>3} {:>9} {:>9} {:>9} {:>7}".format("tensor", *heads)
    index = entropy = 0.0
    for name, size in sizes(state).items():
        own = f"{size.numel:10,} {int((state[name] != 0).sum()):8,} {size.num_values:3}"
        line = f"  {name:16} {own} {size.bits / 8:9,.0f}"
        if size.entropy_bits:
            saved = 100 * (1 - size.index_bits / size.entropy_bits)
            line += f" {size.index_bits / 8:9,.0f} {size.entropy_bits / 8:9,.0f} {saved:7.1f}"
        index, entropy = index + size.index_bits / 8, entropy + size.entropy_bits / 8
        yield line
    if entropy:
        yield (
            f"  all indices: {index:,.0f} bytes, entropy {entropy:,.0f}, saved "
            f"{100 * (1 - index / entropy):.1f} %; all else {len(data) - index:,.0f} bytes"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--sort", action="store_true", help="fold and sort neurons first")
    parser.add_argument("--benchmark", action="store_true", help="25 million weights")
    arguments = parser.parse_args()
    if arguments.benchmark:
        print("\n".join(lines("25 million weights", made_up())))
    for file in arguments.files:
        state = checkpoints.read_network(file).tensors
        state = folded_and_sorted(state) if arguments.sort else state
        print("\n".join(lines(str(file), state)), flush=True)


if __name__ == "__main__":
    main()
