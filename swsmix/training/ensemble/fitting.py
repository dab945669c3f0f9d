"""fit_ensemble: many small networks trained side by side, as `fit` trains one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swsmix._progress import watched
from swsmix.attach import Update
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training import runs
from swsmix.training.ensemble import saving
from swsmix.training.ensemble.members import Ensemble
from swsmix.training.ensemble.mixtures import Mixtures
from swsmix.training.ensemble.recording import Records
from swsmix.training.ensemble.stacking import Cases, Stack
from swsmix.training.ensemble.trainers import BatchesOfAll, RoundsOfAll
from swsmix.training.evaluation import Batch, Loss
from swsmix.training.history import History

Method = Literal["l-bfgs", "adam"]


def fit_ensemble(
    models: Sequence[nn.Module],
    loss: Loss | Sequence[nn.Module],
    data: Cases | Sequence[Cases],
    *,
    epochs: int,
    optimizer: Method = "l-bfgs",
    priors: Sequence[MixturePrior] | None = None,
    schedule: Schedule | Sequence[Schedule] | None = None,
    update: Update | None = None,
    weights: Float[Tensor, "b n"] | None = None,
    lr: float = 1e-3,
    batch_size: int = 128,
    iterations: int = 40,
    validation: Batch | None = None,
    measure: Loss | None = None,
    record: bool = True,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool | str = True,
    callback: Callable[[int, History], None] | None = None,
) -> Ensemble:
    """Train networks of one class side by side, each under its own prior, in one tensor program.

    The objective of each member is that of `fit`; members do not see each other. With `"l-bfgs"`
    an epoch is a round of `iterations` iterations in float64, each member with a step and a memory
    of its own (a line search of Armijo's, where `fit` calls scipy's); with `"adam"` it is one pass
    over batches that all members share, and each member's steps are those of `fit` with
    `torch.optim.Adam` and the same seed.

    Args:
        models: the networks, alike but for their values; trained in place.
        loss: `loss(model(x), y)`, the mean negative log likelihood of a batch, for all; or a
            module per member. Of a module with parameters (`GaussianNoise`) each member has its
            own.
        data: (x, y) for all, or a pair per member, of one shape.
        epochs: the number of epochs or rounds in all, those before a resume included.
        optimizer: `"l-bfgs"` or `"adam"`.
        priors: one per network, of the same groups, K and mode; None trains without. Weight decay
            is a prior of one pinned component.
        schedule: tau, EM and annealing, one for all or one per member. By default each member's
            prior enters by itself when its loss has fallen, as in `fit`.
        update: how the prior moves the weights under Adam, see `MixturePrior.attach`; the proximal
            step by default, in mode "em".
        weights: how much each case counts for each member; 1 by default. Folds of the data are
            weights of 0 and 1.
        lr: of Adam.
        batch_size: of Adam.
        iterations: of L-BFGS in one round.
        validation: (x, y), measured and never trained on.
        measure: `measure(model(x), y)`, lower is better; the loss by default.
        record: keep a history of each member.
        run: a run folder for checkpoints, one after every epoch. It is that of the *middle* member,
            whose validation measure is the ceil(b / 2)-th best, and resumes the whole ensemble.
        resume: continue from it, with the same bits as without the interruption.
        seed: for the order of the batches.
        progress: show a progress bar on standard error; a string is its label.
        callback: called as callback(epoch, history of the middle member) at the start and after
            every epoch.

    Returns:
        The ensemble: networks, priors, losses, histories.

    Raises:
        ValueError: if the members are not alike, or arguments do not fit together.
        FileExistsError: if `run` holds another run already and `resume` is not set.
        BlockingIOError: if another process or thread is writing to `run`.
        FloatingPointError: if a member's objective is no longer finite; the message names it.

    Example:
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> nets = [nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(3)]
        >>> ensemble = fit_ensemble(nets, nn.functional.mse_loss, (x, x**3), epochs=2,
        ...                         priors=[MixturePrior(net, 2) for net in nets], progress=False)
        >>> len(ensemble), len(ensemble.histories[0])
        (3, 3)
    """
    if optimizer not in ("l-bfgs", "adam"):
        raise ValueError(f"optimizer must be 'l-bfgs' or 'adam'; got {optimizer!r}")
    if resume and run is None:
        raise ValueError("resume needs the folder in run=")
    if not record and (run is not None or callback is not None):
        raise ValueError("run= and callback= need the histories: leave record=True")
    if priors is None and schedule is not None:
        raise ValueError("a schedule is for priors; got none")
    first = next(iter(models[0].parameters())) if models else None
    own = torch.float64 if first is None or optimizer == "l-bfgs" else first.dtype
    stack = Stack(models, loss, data, weights=weights, dtype=own)
    mixtures = None if priors is None else Mixtures(priors, stack)
    schedules = None if schedule is None else _per_member(schedule, len(models))
    trainer: RoundsOfAll | BatchesOfAll
    if optimizer == "l-bfgs":
        if update is not None:
            raise ValueError("'l-bfgs' always follows the gradient: omit update")
        trainer = RoundsOfAll(stack, mixtures, schedules, iterations)
    else:
        trainer = BatchesOfAll(stack, mixtures, schedules, lr, batch_size, update, seed)
    records = Records(trainer, validation, measure, keep=record)
    folder = None if run is None else Path(run)
    with nullcontext() if folder is None else runs.held_run(folder, resume=resume):
        # -1: not even the start is recorded.
        done = -1 if folder is None else saving.begin_(folder, trainer, records, resume=resume)
        if done > epochs:
            raise ValueError(f"the run has done {done} epochs already; got epochs={epochs}")
        for epoch in watched(
            range(done + 1, epochs + 1),
            progress if isinstance(progress, str) else "",
            shown=progress is not False,
            total=epochs + 1,
            done=done + 1,
            note=records.headline,
            transient=False,
        ):
            if epoch:
                trainer.epoch(epoch)
            records.record(epoch)
            if folder is not None:
                saving.save(folder, epoch, trainer, records)
            if callback is not None:
                callback(epoch, records.histories[records.middle()])
        trainer.write_()
        if folder is not None:
            saving.save(folder, epochs, trainer, records, final=True)
    records.warn()
    return Ensemble(
        stack.models,
        list(priors or []),
        stack.losses,
        records.histories,
        records.objective,
        records.middle(),
    )


def _per_member(schedule: Schedule | Sequence[Schedule], members: int) -> list[Schedule]:
    if isinstance(schedule, Schedule):
        return [schedule] * members
    if len(schedule) != members:
        raise ValueError(f"{members} members need one schedule, or one each; got {len(schedule)}")
    return list(schedule)
