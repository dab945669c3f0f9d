#!/usr/bin/env python3
"""What soft weight-sharing is compared with: gradual pruning and straight-through k-means.

    papers/ullrich2017/pruning.py lenet-5-caffe fc1.weight=0.006 conv2.weight=0.08
    papers/ullrich2017/pruning.py lenet-300-100 --prune-epochs 50 --values 5 fc1.weight=0.03
    papers/ullrich2017/pruning.py resnet-20 --lr 5e-4 --shares-of FILE.sws --times 0.5

    prune     the share of zeros of each tensor rises as 1 - (1 - t)^3, and the smallest go
              (Zhu & Gupta 2017); a zero comes back only if its next step alone makes it larger than
              those that would be left
    cluster   k-means of what is left; the network answers with the centres and the gradient moves
              the weights, which are assigned anew as they move
    snap      to the centres, which are fine-tuned; then our own file, as for the rows of the table

The same images, optimiser, transforms and codec as the rows, so that only the method differs;
biases are clustered where the row's are. Appends a line with bytes and errors on the validation
images to pruning.jsonl; the test images are not read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":  # import `papers` and `swsmix` from this checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from papers.ullrich2017 import cifar, work
from papers.ullrich2017.images import Images, training_images
from papers.ullrich2017.settings import Setting
from swsmix.codec import encode, load_compressed
from swsmix.compression import clusters
from swsmix.compression.batch_norms import fold_batch_norms_
from swsmix.compression.centres import tie
from swsmix.start import initial_mixture
from swsmix.training.evaluation import Loss, evaluate

HERE = Path(__file__).resolve().parent
KEPT = HERE / "pruning.jsonl"


class Batches(Protocol):
    """Batches of images and labels: their number, and one epoch of them."""

    def __len__(self) -> int: ...  # noqa: D105
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...  # noqa: D105


@dataclass(frozen=True)
class Pruning:
    """How much to prune, and how long.

    Attributes:
        kept: name of each tensor -> the share of its weights that is left.
        num_values: of each tensor, zero included.
        prune_epochs: of pruning; the shares are reached at three quarters.
        cluster_epochs: of straight-through k-means.
        finetune_epochs: of the centres.
        lr: Adam's, falling by a cosine to a twentieth in each phase; fine-tuning has a twentieth.
        every: steps between two prunings, or two assignments.
    """

    kept: Mapping[str, float]
    num_values: int = 8
    prune_epochs: int = 50
    cluster_epochs: int = 20
    finetune_epochs: int = 1
    lr: float = 2e-3
    every: int = 50


def compress_(
    net: nn.Module,
    loss: Loss,
    images: Batches,
    pruning: Pruning,
    look: Callable[[str], None] = lambda phase: None,
) -> dict[str, Tensor]:
    """Prune, cluster, snap and fine-tune a pretrained network, in place; `look` after each phase.

    Returns:
        The cluster of each weight, by tensor; 0 is zero's.
    """
    weights = {name: net.get_parameter(name) for name in pruning.kept}
    alive = prune_(net, weights, loss, images, pruning)
    look("prune")
    index = cluster_(net, weights, alive, loss, images, pruning)
    look("cluster")
    handles = [tie(w, index[name]) for name, w in weights.items()]
    for batch in _epochs(net, images, pruning.finetune_epochs, pruning.lr / 20):
        batch(loss, net)
    for handle in handles:
        handle.remove()
    for name, w in weights.items():
        clusters.set_to_centres_(w, index[name])
    look("finetune")
    return index


def prune_(
    net: nn.Module, weights: Mapping[str, Tensor], loss: Loss, images: Batches, pruning: Pruning
) -> dict[str, Tensor]:
    """Train while the smallest weights go; which are left."""
    alive = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    steps = len(images) * pruning.prune_epochs
    for step, batch in enumerate(_epochs(net, images, pruning.prune_epochs, pruning.lr)):
        if step % pruning.every == 0:
            progress = min((step + pruning.every) / (0.75 * steps), 1.0)
            for name, w in weights.items():
                alive[name] = largest(w, kept_at(pruning.kept[name], progress))
        for name, w in weights.items():
            w.data.masked_fill_(~alive[name], 0.0)
        batch(loss, net)
    for name, w in weights.items():
        alive[name] = largest(w.data.masked_fill_(~alive[name], 0.0), pruning.kept[name])
        w.data.masked_fill_(~alive[name], 0.0)
    return alive


def kept_at(kept: float, progress: float) -> float:
    """The share that is left at some point of the pruning, from 0 to 1."""
    return 1.0 - (1.0 - kept) * (1.0 - (1.0 - progress) ** 3)


def largest(w: Tensor, share: float) -> Tensor:
    """Which weights are left, if that share of the largest is."""
    count = round(share * w.numel())
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[w.detach().abs().reshape(-1).topk(count).indices] = True
    return mask.view(w.shape)


def cluster_(
    net: nn.Module,
    weights: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    loss: Loss,
    images: Batches,
    pruning: Pruning,
) -> dict[str, Tensor]:
    """Train with answers from the centres of k-means; the cluster of each weight."""
    centres, index = {}, {}
    for name, w in weights.items():
        left = w.detach()[alive[name]]
        k = min(pruning.num_values - 1, len(left.unique()))
        found = initial_mixture(left, k, method="kmeans", seed=0).mean if k else left
        centres[name] = torch.cat([torch.zeros(1), found])
    for step, batch in enumerate(_epochs(net, images, pruning.cluster_epochs, pruning.lr)):
        if step % pruning.every == 0:
            for name, w in weights.items():
                index[name] = assigned_(centres[name], w.detach(), alive[name])
        values = {
            name: w + (centres[name][index[name]] - w).detach() for name, w in weights.items()
        }
        batch(loss, partial(_answer, net, values))
    for name, w in weights.items():
        index[name] = assigned_(centres[name], w.detach(), alive[name])
        w.data.copy_(centres[name][index[name]])
    return index


def _answer(net: nn.Module, values: dict[str, Tensor], x: Tensor) -> Tensor:
    answer: Tensor = torch.func.functional_call(net, values, (x,))
    return answer


def assigned_(centre: Tensor, w: Tensor, alive: Tensor) -> Tensor:
    """The nearest centre of each weight that is left, and these centres moved to their means."""
    index = torch.zeros_like(w, dtype=torch.long)
    if len(centre) > 1:
        left = w[alive]
        j = (left[:, None] - centre[None, 1:]).abs().argmin(1)
        index[alive] = j + 1
        count = torch.bincount(j, minlength=len(centre) - 1)
        mean = torch.bincount(j, left, minlength=len(centre) - 1) / count.clamp_min(1)
        centre[1:] = torch.where(count > 0, mean, centre[1:])
    return index


Answer = Callable[[Tensor], Tensor]


def _epochs(
    net: nn.Module, images: Batches, epochs: int, lr: float
) -> Iterator[Callable[[Loss, Answer], None]]:
    """A call for each batch that makes a step of Adam on it."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    scheduler = CosineAnnealingLR(optimizer, max(epochs, 1), lr / 20)
    for _ in range(epochs):
        net.train()
        for x, y in images:

            def step(loss: Loss, answer: Answer, x: Tensor = x, y: Tensor = y) -> None:
                optimizer.zero_grad()
                loss(answer(x), y).backward()
                optimizer.step()

            yield step
        scheduler.step()


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


def main() -> None:
    """Compress one network, and keep what it takes and how many errors it makes."""
    arguments = _arguments()
    few = "" if arguments.images is None else f"-{arguments.images}-images"
    scratch = HERE.parents[1] / "runs" / f"ullrich2017{few}"
    problem = (on_mnist if arguments.net in work.NETS else on_cifar)(arguments, scratch)
    net, epochs = problem.net, (arguments.prune_epochs, arguments.cluster_epochs)
    kept = shares(arguments, problem.shared)
    pruning = Pruning(kept, arguments.values, *epochs, lr=arguments.lr)
    by_phase: dict[str, float] = {}

    def look(phase: str) -> None:
        by_phase[phase] = evaluate(net, work.errors, problem.validation)

    began = time.process_time()
    index = compress_(net, problem.loss, problem.images, pruning, look)
    seconds = time.process_time() - began
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
        "processor_seconds": round(seconds),
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
    parser.add_argument("--images", type=int, help="so many only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="why it was tried")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
