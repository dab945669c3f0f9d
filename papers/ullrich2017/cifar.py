"""The rows of CIFAR-10: a dense network, its compressed file, and what the file is worth.

    swsmix reproduce ullrich2017 --only resnet-20     about 100 minutes on two free cores
    swsmix reproduce ullrich2017 --only wrn-16-4      for a GPU

Each phase is at most 40 epochs and has a checkpoint after every one; the same command goes on from
there, with the same bits on the same number of threads. The checkpoints stay. The procedure is in
README.md; the test images are read by `compress` alone, once, after the file is written.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from papers.ullrich2017.work import errors
from swsmix import fit
from swsmix.codec import encode, load_compressed
from swsmix.compression import save_compressed
from swsmix.compression.batch_norms import fold_batch_norms_
from swsmix.compression.recipe import Recipe, compress_
from swsmix.compression.targets import Target, TargetError
from swsmix.compression.transforms import same_outputs, sort_neurons_
from swsmix.problems import resnets
from swsmix.problems.augmentation import Augmented
from swsmix.problems.cifar10 import CIFAR10Tensors, cifar10, cifar10_tensors, jitter
from swsmix.problems.reproduction.runner import Places
from swsmix.problems.reproduction.units import Unit
from swsmix.training.evaluation import evaluate
from swsmix.training.runs import replacing


@dataclass(frozen=True)
class Row:
    """One network on CIFAR-10, and how it is trained and compressed.

    Attributes:
        name: of the network.
        make: generator -> network.
        blocks: how many blocks of two convolutions it has, whose inner channels may be sorted.
        allowed: how many points of validation error the compressed network may lose; None for the
            recipe's phases alone, in attempts.
        recipe: where the search for the prior's strength begins, and how long its phases are.
        dense_epochs: of training before the prior comes.
        peak_lr: the highest learning rate of that training.
        batch_size: images per step.
        weight_decay: of that training.
    """

    name: str
    make: Callable[..., nn.Module]
    blocks: int
    allowed: float | None
    recipe: Recipe
    dense_epochs: int = 18
    peak_lr: float = 0.2
    batch_size: int = 128
    weight_decay: float = 5e-4


RECIPE = Recipe(
    num_components=8,
    sparsify_tau=0.02,
    quantise_tau=0.01,
    sparsify_epochs=16,
    warmup_epochs=3,
    quantise_epochs=5,
    finetune_epochs=1,
    # A folded network has no batch norm to hold it: a tenth of what the LeNets take.
    sparsify_lr=5e-4,
    quantise_lr=3e-4,
    finetune_lr=1e-4,
    zero_start=0.5,
)
RESNET = Row("resnet-20", resnets.resnet20, blocks=9, allowed=0.8, recipe=RECIPE)
WIDE = Row("wrn-16-4", resnets.wrn, blocks=6, allowed=0.8, recipe=RECIPE)
ROWS = {row.name: row for row in (RESNET, WIDE)}
SHORT = {"sparsify_epochs": 1, "warmup_epochs": 0, "quantise_epochs": 1, "finetune_epochs": 0}
QUICK_IMAGES = 512
THREADS = os.cpu_count() or 1  # one network at a time: all cores
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def images(seed: int, subset: int | None) -> CIFAR10Tensors:
    """45,000 training images and 5,000 to choose by, drawn by the seed; or so many of each part."""
    data = cifar10_tensors(
        cifar10(), generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float32
    )
    return data if subset is None else CIFAR10Tensors(*(t[:subset] for t in vars(data).values()))


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """The mean negative log likelihood."""
    return nn.functional.cross_entropy(logits, target)


def network(row: Row, seed: int, *, folded: bool = False) -> nn.Module:
    """The network on `DEVICE`, in the faster memory format; folded, without its batch norms."""
    net = row.make(generator=torch.Generator().manual_seed(seed))
    net = net.to(DEVICE, memory_format=torch.channels_last)
    if folded:
        fold_batch_norms_(net.eval())
    return net


def dense_file(row: Row, seed: int, scratch: Path) -> Path:
    """Where the dense network is kept."""
    return scratch / "pretrained" / f"{row.name}-seed{seed}.safetensors"


def pretrain(row: Row, seed: int, scratch: Path, subset: int | None) -> dict[str, Any]:
    """Train a dense network by SGD under a one-cycle schedule, and keep it in `dense_file`.

    Returns:
        Its settings and its errors on validation images.
    """
    torch.set_num_threads(THREADS)
    data, net = images(seed, subset), network(row, seed)
    optimizer = torch.optim.SGD(
        net.parameters(), row.peak_lr, momentum=0.9, nesterov=True, weight_decay=row.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, row.peak_lr, total_steps=row.dense_epochs, pct_start=0.2, cycle_momentum=False
    )
    history = fit(
        net, loss, batches(row, data, seed), optimizer=optimizer, epochs=row.dense_epochs,
        validation=(data.x_validation, data.y_validation), measure=errors, measure_train=False,
        lr_scheduler=scheduler, run=scratch / "runs" / f"{row.name}-dense-seed{seed}",
        resume=True, progress=shown(),
    )  # fmt: skip
    file = dense_file(row, seed, scratch)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file({n: t.cpu().contiguous() for n, t in net.state_dict().items()}, temporary)
    return {
        "kind": "cifar10-dense",
        "net": row.name,
        "seed": seed,
        "epochs": row.dense_epochs,
        "validation_error_percent": history.scalars["validation_measure"],
    }


def batches(row: Row, data: CIFAR10Tensors, seed: int) -> Augmented:
    """The training images, moved by up to four pixels and mirrored."""
    return Augmented(data.x_train, data.y_train, jitter, batch_size=row.batch_size, seed=seed)


def shown() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()


def compress(
    row: Row, seed: int, scratch: Path, results: Path, subset: int | None, *, test: bool = True
) -> dict[str, Any]:
    """Fold the batch norms, compress, write the file, read it back, and measure what came back.

    Args:
        row: which network, and how.
        seed: of the split, the batches and k-means.
        scratch: where the dense network is, and checkpoints go.
        results: where the file goes.
        subset: so many images only.
        test: whether to read the test images, at the very end.

    Returns:
        Errors, sizes and shares.

    Raises:
        RuntimeError: if the file does not decode to what was written.
    """
    torch.set_num_threads(THREADS)
    data, dense = images(seed, subset), network(row, seed)
    dense.load_state_dict(load_file(dense_file(row, seed, scratch)))
    fold_batch_norms_(dense.eval())
    net = copy.deepcopy(dense)
    target = None if row.allowed is None else Target(measure_increase=row.allowed)
    try:
        done = compress_(
            net, loss, batches(row, data, 7919 + seed), recipe=row.recipe, target=target,
            measure=errors, validation=(data.x_validation, data.y_validation), seed=seed,
            run=scratch / "runs" / f"{row.name}-seed{seed}", resume=True, progress=shown(),
        )  # fmt: skip
        reached, state, histories = done.reached, net.state_dict(), done.histories
    except TargetError as error:  # the nearest network is a result too, and is said to miss
        reached, state, histories = error.nearest, error.state, {}
    state = smallest(row, state, data.x_validation[:100])
    file = results / f"{row.name}-seed{seed}.sws"
    size = save_compressed(file, state)
    decoded = load_compressed(file)
    if any(not torch.equal(decoded[n], t) for n, t in state.items()):
        raise RuntimeError(f"{file} does not decode to the network that was written")
    weights = {n: t for n, t in decoded.items() if t.ndim > 1}
    nonzero = {n: int((t != 0).sum()) for n, t in weights.items()}
    total = sum(t.numel() for t in weights.values())
    parameters = sum(t.numel() for t in decoded.values())
    return {
        "kind": "cifar10",
        "net": row.name,
        "seed": seed,
        "allowed_points": row.allowed,
        "recipe": asdict(row.recipe),
        "batch_size": row.batch_size,
        "size_bytes": size,
        "float32_bytes": 4 * parameters,
        "ratio": 4 * parameters / size,
        "nonzero": nonzero,
        "nonzero_percent": 100.0 * sum(nonzero.values()) / total,
        "values": {n: len(t.unique()) for n, t in weights.items()},
        "met": None if reached is None else reached.used <= 1.0 + 1e-6,
        "path": [] if reached is None else [asdict(step) for step in reached.path],
        "validation_error_by_phase": {
            phase: history.scalars["validation_measure"][-1] for phase, history in histories.items()
        },
        **measure(dense, decoded, data, test=test),
    }


def smallest(row: Row, state: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The network as it is, or with the inner channels of its blocks sorted, if that is smaller."""
    state = {n: t.detach().cpu().contiguous() for n, t in state.items()}
    before, after = (network(row, 0, folded=True).cpu() for _ in range(2))
    before.load_state_dict(state)
    after.load_state_dict(state)
    for block in range(row.blocks):  # the norm between the two convolutions is folded
        sort_neurons_(after, f"blocks.{block}.conv1", f"blocks.{block}.conv2")
    same_outputs(before, after, [x], tolerance=1e-3)
    transformed = {n: t.detach().contiguous() for n, t in after.state_dict().items()}
    return min((state, transformed), key=lambda each: len(encode(each)))


@torch.no_grad()
def measure(
    dense: nn.Module, decoded: dict[str, Tensor], data: CIFAR10Tensors, *, test: bool = True
) -> dict[str, float]:
    """Errors of the dense network and of the one read back from the file, in percent."""
    net = copy.deepcopy(dense)
    net.load_state_dict(decoded)
    parts = {"validation": (data.x_validation, data.y_validation)}
    if test:
        parts["test"] = data.x_test, data.y_test
    return {
        f"{name}_{part}_error_percent": evaluate(which, errors, pair)
        for name, which in (("dense", dense), ("compressed", net))
        for part, pair in parts.items()
    }


def stages(name: str, places: Places, seeds: int, *, quick: bool) -> list[list[Unit]]:
    """The units of one row: the dense network, then its file."""
    assert seeds == 1
    row, subset = ROWS[name], None
    if quick:
        recipe = replace(row.recipe, em_every=2, **SHORT)
        row, subset = replace(row, dense_epochs=1, recipe=recipe, allowed=100.0), QUICK_IMAGES
    stamp = {"subset": subset}
    dense = Unit(
        name, f"{name}-dense-seed0", pretrain, (row, 0, places.scratch, subset),
        stamp=stamp, own_file=True, leaves=(dense_file(row, 0, places.scratch),),
    )  # fmt: skip
    file = places.results / f"{name}-seed0.sws"
    compressed = Unit(
        name, f"{name}-seed0", compress, (row, 0, places.scratch, places.results, subset),
        stamp=stamp, own_file=True, leaves=(file,),
    )  # fmt: skip
    return [[dense], [compressed]]
