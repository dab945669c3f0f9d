"""fit: train a network under a mixture prior, SGD on the weights interleaved with EM.

`fit` makes one of two trainers, of `batches` or of `rounds`. The rest is what they have in common:
records, checkpoints, early stopping, the progress bar.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from swsmix._progress import watched
from swsmix.attach import MomentsOf, Update
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training import runs
from swsmix.training.batches import BatchTrainer
from swsmix.training.evaluation import Data, Loss, check_data, num_cases
from swsmix.training.history import History
from swsmix.training.recording import Recorder
from swsmix.training.rounds import METHODS, FullBatch, RoundTrainer
from swsmix.training.stopping import EarlyStopping
from swsmix.training.trainer import Trainer

_FULL_BATCH = {f"the optimizer {method!r}" for method in METHODS}


def fit(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    optimizer: Optimizer | FullBatch,
    epochs: int,
    prior: MixturePrior | None = None,
    schedule: Schedule | None = None,
    update: Update | None = None,
    moments: MomentsOf = "maximum",
    num_data: int | None = None,
    batch_size: int = 128,
    iterations: int = 40,
    validation: Data | None = None,
    measure: Loss | None = None,
    measure_train: bool = True,
    patience: int | None = None,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool | str = True,
    callback: Callable[[int, History], None] | None = None,
) -> History:
    """Train a network under a mixture prior; the mixture learns from the weights as they move.

    objective = mean negative log likelihood + tau / num_data * (R(w) - log p(phi))   [nats]

    With a torch optimiser, an epoch is one pass over the batches, and the prior acts through
    `MixturePrior.attach`. With `"l-bfgs"` or `"cg"` (full batch, by `scipy.optimize`, as in the
    1992 paper, for small networks) an epoch is one *round* of `iterations` iterations, followed by
    one tick of the schedule's clock.

    Args:
        model: the network; it is not wrapped. Data are moved to its device.
        loss: `loss(model(x), y)`, the mean negative log likelihood of a batch. If it is a module
            with parameters (`GaussianNoise`), they are trained too.
        data: the training data, as two tensors (x, y) or as an iterable of batches (a
            `DataLoader`); the full-batch methods need two tensors.
        optimizer: over the model's parameters (and the loss's, and the prior's in mode
            "gradient"), or `"l-bfgs"` or `"cg"`.
        epochs: the number of epochs or rounds in all, those before a resume included.
        prior: the mixture prior; None trains without one.
        schedule: tau, warm-up, EM, annealing. By default the prior enters when the loss has
            fallen, and tau rises to what N and `num_data` allow, see `MixturePrior.attach`, and
            `swsmix.training.entering` for the full-batch methods, which make an EM step after
            every round. There `Schedule(em_every=1)` is tau = 1 from the first round on; it is
            the default with moments="posterior".
        update: how the prior moves the weights, see `MixturePrior.attach`; the full-batch methods
            always follow the gradient.
        moments: what EM is over, the `"maximum"` of the posterior or the `"posterior"` of each
            weight: its variance comes from the second moments of Adam over batches, see
            `MixturePrior.attach`, or, with the full-batch methods and at most 5,000 parameters,
            from a Laplace approximation (`swsmix.bayes.laplace`), after which parameters of the
            loss move with the EM steps alone.
        num_data: the number of training examples; by default that of `data`.
        batch_size: for two tensors and a torch optimiser; they are shuffled anew each epoch.
        iterations: of the full-batch method in one round.
        validation: as `data`; it is measured, never trained on.
        measure: `measure(model(x), y)`, a mean over a batch, lower is better; the loss by default.
        measure_train: measure on the training data too, one more pass after each epoch; without
            it `data_loss`, `objective` and `train_measure` of the history are nan.
        patience: stop after this many epochs without a better validation measure, and go back to
            the best network and mixture.
        lr_scheduler: stepped after every epoch.
        run: a folder for checkpoints, one after every epoch, see `swsmix.training.runs`.
        resume: continue from the newest checkpoint in `run`, if there is one, with the same bits
            as without the interruption. (The states of torch's generators and of a loader's own
            are kept; those of `random` and numpy are not.) The classes of the optimiser and of
            `lr_scheduler` must be those of the run, and a prior given if it has one.
        seed: for shuffling.
        progress: show a progress bar on standard error; a string is its label.
        callback: called as callback(epoch, history) after every epoch.

    Returns:
        The history: a record of the start and of every epoch.

    Raises:
        ValueError: for arguments that do not fit together, and if the weights are no longer finite
            at an EM step or a record.
        FileExistsError: if `run` holds another run already and `resume` is not set.
        BlockingIOError: if another process or thread is writing to `run`.
        FloatingPointError: if the objective is no longer finite; the last checkpoint stays.

    Example:
        >>> from swsmix import GaussianNoise
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> prior = MixturePrior(net, num_components=3)
        >>> history = fit(net, GaussianNoise(0.3), (x, x**3), optimizer="l-bfgs", epochs=2,
        ...               iterations=5, prior=prior, progress=False)
        >>> len(history)
        3
    """
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be at least 1 epoch; got {patience}")
    if patience is not None and validation is None:
        raise ValueError("patience (early stopping) needs validation data")
    if resume and run is None:
        raise ValueError("resume needs the run folder in run=")
    check_data(data)
    with nullcontext() if run is None else runs.held_run(run, resume=resume):
        trainer = _trainer(
            model, loss, data, optimizer, prior, schedule, update, moments,
            num_cases(data) if num_data is None else num_data,
            batch_size, iterations, lr_scheduler, seed,
        )  # fmt: skip
        trained = {"network": model, "prior": prior, "loss": loss}
        modules = {name: each for name, each in trained.items() if isinstance(each, nn.Module)}
        stopping = EarlyStopping(modules, patience)
        checkpoints = _Checkpoints(None if run is None else Path(run), trainer, data, stopping)
        try:
            done, history = checkpoints.begin_(resume=resume)
            if done > epochs:
                raise ValueError(f"the run has done {done} epochs already; got epochs={epochs}")
            recorder = Recorder(
                trainer,
                train=data if measure_train else None,
                validation=validation,
                measure=measure or loss,
                history=history,
            )
            if not len(history):
                recorder.record(0)
                checkpoints.save(0, history)
            for epoch in watched(
                range(done + 1, epochs + 1),
                progress if isinstance(progress, str) else "",
                shown=progress is not False,
                total=epochs,
                done=done,
                note=recorder.headline,
                transient=False,
            ):
                if stopping.stale:
                    break
                trainer.epoch(epoch)
                recorder.record(epoch)
                trainer.adapt_rate(recorder.score)
                stopping.see(history.scalars["validation_measure"][-1])
                checkpoints.save(epoch, history)
                done = epoch
                if callback is not None:
                    callback(epoch, history)
        finally:
            trainer.close()
        if stopping.restore_():
            recorder.record(done)  # the network that is returned is the last record's
        checkpoints.save(done, history, final=True)
        return history


def _trainer(
    model: nn.Module,
    loss: Loss,
    data: Data,
    optimizer: Optimizer | str,
    prior: MixturePrior | None,
    schedule: Schedule | None,
    update: Update | None,
    moments: MomentsOf,
    num_data: int,
    batch_size: int,
    iterations: int,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    seed: int,
) -> Trainer:
    """The trainer that these arguments of `fit` ask for."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"the model {type(model).__name__} has no parameters to train")
    if not isinstance(optimizer, str):
        return BatchTrainer(
            model, loss, data, optimizer, num_data=num_data, prior=prior, schedule=schedule,
            update=update, moments=moments, batch_size=batch_size, lr_scheduler=lr_scheduler,
            seed=seed,
        )  # fmt: skip
    if lr_scheduler is not None:
        raise ValueError(f"{optimizer!r} has no learning rate to schedule: omit lr_scheduler")
    return RoundTrainer(
        model, loss, data, optimizer, num_data=num_data, prior=prior, schedule=schedule,
        iterations=iterations, moments=moments,
    )  # fmt: skip


class _Checkpoints:
    """The checkpoints of one call of `fit`, in its run folder; without a folder there are none."""

    def __init__(
        self, folder: Path | None, trainer: Trainer, data: Data, stopping: EarlyStopping
    ) -> None:
        self.folder, self.trainer, self.data, self.stopping = folder, trainer, data, stopping

    def begin_(self, *, resume: bool) -> tuple[int, History]:
        """Restore the newest checkpoint, or claim the folder: the epochs done, and the history."""
        if self.folder is None:
            return 0, History()
        if not (resume and runs.has_checkpoint(self.folder)):
            runs.claim(self.folder)
            return 0, History()
        saved = runs.load_run(self.folder, resumable=True)
        file = saved.folder / "training.pt"
        for name in ("job", "best"):
            if name not in saved.training:
                raise ValueError(
                    f"{file} has no `{name}`: it was not written by `fit`, which cannot continue it"
                )
        last = saved.history.scalars.get("epoch", [])[-1:]
        if last != [saved.epoch]:
            raise ValueError(
                f"{file} is of epoch {saved.epoch}, and the history beside it ends at {last}: copy "
                "both from one backup, or train again in another folder"
            )
        state, loss = saved.training["job"], self.trainer.loss
        _check_same(file, state, _made_with(self.trainer))
        runs.restore_(saved, self.trainer.model, self.trainer.prior)
        with _named(file, "job.loss"):
            if isinstance(loss, nn.Module):
                loss.load_state_dict(state["loss"])
        with _named(file, "job"):
            self.trainer.load_state_dict(state)
        with _named(file, "best"):
            self.stopping.load_state_dict(saved.training["best"])
        with _named(file, "job.rng"):
            _set_generators_(state, self.data)
        return saved.epoch, saved.history

    def save(self, epoch: int, history: History, *, final: bool = False) -> None:
        """Write a checkpoint, or the outcome."""
        if self.folder is None:
            return
        state = {**self.trainer.state_dict(), **_generators(self.data)}
        state["made_with"] = _made_with(self.trainer)
        if isinstance(self.trainer.loss, nn.Module):
            state["loss"] = self.trainer.loss.state_dict()
        runs.save_checkpoint(
            self.folder,
            epoch,
            network=self.trainer.model,
            prior=self.trainer.prior,
            history=history,
            training={"job": state, "best": self.stopping.state_dict()},
            final=final,
        )


def _made_with(trainer: Trainer) -> dict[str, str]:
    """What a run must be continued with, in words."""
    made = {part: f"the {part} {name}" for part, name in trainer.parts.items()}
    if trainer.prior is not None:
        made["prior"] = "a prior"
    if isinstance(trainer.loss, nn.Module) and trainer.loss.state_dict():
        made["loss with parameters"] = "a loss with parameters"
    return made


def _check_same(file: Path, state: dict[str, Any], given: dict[str, str]) -> None:
    """Check that a run is continued with what it was made with.

    Another optimiser may well take the state: that of AdamW is Adam's, and "l-bfgs" reads none.

    Raises:
        ValueError: naming both.
    """
    if "made_with" in state:
        made = state["made_with"]
    else:  # by an older version: only the kind of training can be told
        torchs, full_batch = "an optimiser of torch", "the optimizer 'l-bfgs' or 'cg'"
        made = {"optimizer": torchs if "optimizer" in state else full_batch}
        given = {"optimizer": full_batch if given["optimizer"] in _FULL_BATCH else torchs}
    for part in dict.fromkeys([*made, *given]):
        was, now = (each.get(part, f"no {part}") for each in (made, given))
        if was != now:
            raise ValueError(
                f"the run of {file} was trained with {was}; got {now}: continue it with the same, "
                "or train in another folder (from its network, see `load_run`)"
            )


@contextmanager
def _named(file: Path, field: str) -> Iterator[None]:
    """Say which field of a training state does not fit."""
    try:
        yield
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(
            f"`{field}` of {file} does not fit: {why}; continue with the same optimiser, loss and "
            "schedulers, or train again in another folder"
        ) from error


def _generators(data: Data) -> dict[str, Any]:
    """The states of torch's random generators, and of the loader's own."""
    state: dict[str, Any] = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state_all()
    if isinstance(generator := getattr(data, "generator", None), torch.Generator):
        state["loader_rng"] = generator.get_state()
    return state


def _set_generators_(state: dict[str, Any], data: Data) -> None:
    """The inverse of `_generators`."""
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    if "loader_rng" in state:
        generator = getattr(data, "generator", None)
        if not isinstance(generator, torch.Generator):
            raise ValueError(
                "the run was begun with a data loader that has a generator of its own, this one "
                "has none: pass DataLoader(..., generator=torch.Generator())"
            )
        generator.set_state(state["loader_rng"])
