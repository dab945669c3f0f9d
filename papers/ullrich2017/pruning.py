#!/usr/bin/env python3
"""What soft weight-sharing is compared with: gradual pruning and straight-through k-means.

    papers/ullrich2017/pruning.py lenet-5-caffe fc1.weight=0.006 conv2.weight=0.08
    papers/ullrich2017/pruning.py lenet-300-100 --prune-epochs 50 --values 5 fc1.weight=0.03
    papers/ullrich2017/pruning.py resnet-20 --lr 5e-4 --shares-of FILE.sws --times 0.5

The method is in `gradual_pruning.py`. The same images, optimiser, transforms and codec as the rows,
so that only the method differs; biases are clustered where the row's are. Appends a line with bytes
and errors on the validation images to pruning.jsonl; the test images are not read. A network that
is pruned is kept: another way to cluster it begins there, and its seconds count all the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":  # import `papers` and `swsmix` from this checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from papers.ullrich2017 import cifar, work
from papers.ullrich2017.gradual_pruning import Batches, Pruning, prune_, quantise_
from papers.ullrich2017.images import Images, training_images
from papers.ullrich2017.settings import Setting
from swsmix.codec import encode, load_compressed
from swsmix.compression.batch_norms import fold_batch_norms_
from swsmix.training.evaluation import Loss, evaluate
from swsmix.training.runs import replacing

HERE = Path(__file__).resolve().parent
KEPT = HERE / "pruning.jsonl"


@dataclass(frozen=True)
class Problem:
    """A pretrained network, and what it is pruned on.

    Attributes:
        net: the network, with the names of `net.named_parameters()`.
        shared: names of the tensors that are pruned and clustered, as ours are in the same row.
        images: batches, anew at each pass.
        loss: what is trained on.
        validation: images and labels that the errors are counted on.
        finish: the clusters -> the state_dict that makes the smaller file.
        errors: state_dict -> errors on these images, in percent.
    """

    net: nn.Module
    shared: tuple[str, ...]
    images: Batches
    loss: Loss
    validation: tuple[Tensor, Tensor]
    finish: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    errors: Callable[[dict[str, Tensor]], float]


def on_mnist(arguments: argparse.Namespace, scratch: Path) -> Problem:
    """A LeNet, weights and biases."""
    torch.set_num_threads(1)
    seed, name = arguments.seed, arguments.net
    setting = Setting(f"pruned-{name}", name, dropout=arguments.dropout, batch_size=128)
    if not work.dense_file(setting, seed, scratch).is_file():
        work.pretrain(setting, seed, scratch, arguments.images)
    train, validation = training_images(seed, arguments.images)
    net = work.network(setting, seed)
    net.load_state_dict(load_file(work.dense_file(setting, seed, scratch)))
    return Problem(
        net, tuple(n for n, _ in net.named_parameters()),
        Images(*train, setting, 7919 + seed), work.loss, validation,
        lambda index: work.smallest(setting, net, index, validation[0][:1000])[0],
        lambda state: work.errors_of(setting, state, validation),
    )  # fmt: skip


def on_cifar(arguments: argparse.Namespace, scratch: Path) -> Problem:
    """A network of `cifar.py` with its batch norms folded, the weights alone."""
    torch.set_num_threads(cifar.THREADS)
    seed, row = arguments.seed, cifar.ROWS[arguments.net]
    if not cifar.dense_file(row, seed, scratch).is_file():
        cifar.pretrain(row, seed, scratch, arguments.images)
    data, net = cifar.images(seed, arguments.images), cifar.network(row, seed).cpu()
    net.load_state_dict(load_file(cifar.dense_file(row, seed, scratch)))
    fold_batch_norms_(net.eval())
    validation = data.x_validation, data.y_validation

    def errors(state: dict[str, Tensor]) -> float:
        net.load_state_dict(state)
        return evaluate(net, work.errors, validation)

    return Problem(
        net, tuple(n for n, p in net.named_parameters() if p.ndim > 1),
        cifar.batches(row, data, 7919 + seed), cifar.loss, validation,
        lambda _: cifar.smallest(row, net.state_dict(), validation[0][:100]), errors,
    )  # fmt: skip


def shares(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, float]:
    """The share of each tensor that is left: as asked for, as in a file, or 1."""
    kept = dict.fromkeys(names, 1.0)
    if arguments.shares_of is not None:
        state = load_compressed(arguments.shares_of)
        kept = {n: float((state[n] != 0).double().mean()) for n in kept}
    kept |= {name: float(share) for name, _, share in (k.partition("=") for k in arguments.kept)}
    return {name: round(min(arguments.times * share, 1.0), 5) for name, share in kept.items()}


def pruned(problem: Problem, pruning: Pruning, arguments: argparse.Namespace, scratch: Path) -> int:
    """Prune the network, or load what was pruned in the same way; the processor seconds."""
    what = pruning.kept, pruning.prune_epochs, pruning.lr, arguments.dropout, arguments.seed
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    file = scratch / "pruned" / f"{arguments.net}-{key}.safetensors"
    if file.is_file():
        problem.net.load_state_dict(load_file(file))
        with safe_open(file, "pt") as opened:
            return int(opened.metadata()["processor_seconds"])
    began = time.process_time()
    prune_(problem.net, problem.loss, problem.images, pruning)
    seconds = round(time.process_time() - began)
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {n: t.contiguous() for n, t in problem.net.state_dict().items()}
    with replacing(file) as temporary:
        save_file(state, temporary, {"processor_seconds": str(seconds)})
    return seconds


def main() -> None:
    """Compress one network, and keep what it takes and how many errors it makes."""
    arguments = _arguments()
    few = "" if arguments.images is None else f"-{arguments.images}-images"
    scratch = HERE.parents[1] / "runs" / f"ullrich2017{few}"
    problem = (on_mnist if arguments.net in work.NETS else on_cifar)(arguments, scratch)
    net, epochs = problem.net, (arguments.prune_epochs, arguments.cluster_epochs)
    kept = shares(arguments, problem.shared)
    lr = {"lr": arguments.lr, "cluster_lr": arguments.cluster_lr}
    pruning = Pruning(kept, arguments.values, *epochs, **lr)
    by_phase: dict[str, float] = {}

    def look(phase: str) -> None:
        by_phase[phase] = evaluate(net, work.errors, problem.validation)

    seconds = pruned(problem, pruning, arguments, scratch)
    look("prune")
    began = time.process_time()
    index = quantise_(net, problem.loss, problem.images, pruning, look)
    seconds += round(time.process_time() - began)
    state = problem.finish(index)
    line = {
        "net": arguments.net,
        "dropout": arguments.dropout if arguments.net in work.NETS else 0.0,
        "seed": arguments.seed,
        "size_bytes": len(encode(state)),
        "validation_error_percent": problem.errors(state),
        "by_phase": by_phase,
        **asdict(pruning),
        "nonzero": {name: int((t != 0).sum()) for name, t in state.items()},
        "processor_seconds": seconds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "note": arguments.note,
    }
    if arguments.images is None:  # a part of the images is a trial of the program
        with KEPT.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("net", choices=sorted([*work.NETS, *cifar.ROWS]))
    parser.add_argument("kept", nargs="*", help="TENSOR=SHARE that is left; 1 for the others")
    parser.add_argument("--shares-of", type=Path, help="a compressed file: its shares instead of 1")
    parser.add_argument("--times", type=float, default=1.0, help="a factor of all shares")
    parser.add_argument("--values", type=int, default=8, help="of each tensor, zero included")
    parser.add_argument("--dropout", type=float, default=0.35, help="of MNIST's pixels")
    parser.add_argument("--prune-epochs", type=int, default=50)
    parser.add_argument("--cluster-epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's, at the start of a phase")
    parser.add_argument("--cluster-lr", type=float, help="the same for the clusters' phase alone")
    parser.add_argument("--images", type=int, help="so many only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="why it was tried")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
