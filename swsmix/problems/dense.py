"""The training before the prior comes: a dense network, whose batch norms are then folded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from swsmix.compression.batch_norms import fold_batch_norms_
from swsmix.problems.augmentation import Augmented
from swsmix.problems.recipes import Problem
from swsmix.training.evaluation import Data
from swsmix.training.fitting import fit


def start_network(
    problem: Problem, seed: int, *, run: str | None = None, progress: bool = True
) -> nn.Module:
    """The network that the prior will see: a fresh one, or a trained one with folded batch norms.

    Args:
        problem: whose network; its data are on the device to train on.
        seed: of initial weights and batches.
        run: the run folder of what follows. The dense training has one of its own beside it, named
            after network, epochs and seed: it goes on where it was stopped, and is not repeated.
        progress: show a progress bar.
    """
    device = problem.train[0].device
    net = problem.make_net(torch.Generator().manual_seed(seed)).to(device)
    if (dense := problem.dense) is None:
        return net
    net = net.to(memory_format=torch.channels_last)  # a tenth faster on a CPU, at least
    optimizer = torch.optim.SGD(
        net.parameters(), dense.peak_lr, momentum=0.9, nesterov=True,
        weight_decay=dense.weight_decay,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, dense.peak_lr, total_steps=dense.epochs, pct_start=0.2, cycle_momentum=False
    )
    dtype = str(problem.train[0].dtype).removeprefix("torch.")
    name = f"dense-{dense.name}-{dtype}-{dense.epochs}-epochs-seed{seed}"
    fit(
        net, problem.make_loss(), batches(problem, seed), optimizer=optimizer, epochs=dense.epochs,
        validation=problem.validation, measure=problem.measure, measure_train=False,
        lr_scheduler=scheduler, progress="dense" if progress else False,
        run=None if run is None else Path(run).with_name(name), resume=run is not None,
    )  # fmt: skip
    fold_batch_norms_(net.eval())
    return net.train()


def batches(problem: Problem, seed: int) -> Data:
    """The training data as `fit` takes them: augmented, if the problem says so."""
    if problem.augment is None:
        return problem.train
    return Augmented(*problem.train, problem.augment, batch_size=problem.batch_size, seed=seed)
