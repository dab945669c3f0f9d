"""fit: train a network under a mixture prior, SGD on the weights interleaved with EM."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix.attach import Attachment, Update, advance_
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training import runs
from swsmix.training.evaluation import Batch, Data, Loss, is_pair, means
from swsmix.training.history import History
from swsmix.training.rounds import METHODS, FullBatch, minimize_
from swsmix.training.stopping import EarlyStopping


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

    objective = mean negative log likelihood + tau / num_data * (R(w) - log p(phi))

    With a torch optimiser, an epoch is one pass over the batches, and the prior works through
    `MixturePrior.attach`. With `"l-bfgs"` or `"cg"` (full batch, `scipy.optimize`; the way of the
    1992 paper for small networks) an epoch is one *round* of `iterations` iterations between two
    ticks of the schedule's clock.

    Args:
        model: the network; it stays the plain module it is. Data are moved to its device.
        loss: `loss(model(x), y)`, the mean negative log likelihood of a batch. If it is a module
            with parameters (`GaussianNoise`), they are trained too.
        data: the training data, as two tensors (x, y) or as an iterable of batches (a
            `DataLoader`); two tensors for the full-batch methods.
        optimizer: over the model's parameters (and the loss's, and the prior's in mode
            "gradient"), or `"l-bfgs"` or `"cg"`.
        epochs: how many epochs or rounds in all, those before a resume included.
        prior: the mixture prior; None trains without one.
        schedule: tau, warm-up, EM, annealing; `Schedule()` by default, with an EM step every
            round in the full-batch methods.
        update: how the prior moves the weights, see `MixturePrior.attach`; the full-batch methods
            always follow the gradient.
        num_data: the number of training examples; by default that of `data`.
        batch_size: for two tensors and a torch optimiser; they are shuffled anew each epoch.
        iterations: of the full-batch method in one round.
        validation: as `data`; only measured.
        measure: `measure(model(x), y)`, a mean over a batch, lower is better; the loss by default.
        measure_train: measure on the training data too, one more pass after each epoch; without
            it `data_loss`, `objective` and `train_measure` of the history are nan.
        patience: stop after so many epochs without a better validation measure, and go back to
            the best network and mixture.
        lr_scheduler: stepped after every epoch.
        run: a folder for checkpoints, one after every epoch, see `swsmix.training.runs`.
        resume: continue from the newest checkpoint in `run`, bit for bit, if there is one. (The
            states of torch's generators and of a loader's own are kept; those of `random` and
            numpy are yours.)
        seed: for shuffling.
        progress: show a progress bar; a string is its label.
        callback: called as callback(epoch, history) after every epoch.

    Returns:
        The history: a record of the start and of every epoch.

    Raises:
        ValueError: for arguments that do not fit together, and if the weights are no longer finite
            at an EM step.
        FileExistsError: if `run` holds another run already and `resume` is not set.
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
        raise ValueError("patience (early stopping) wants validation data")
    if resume and run is None:
        raise ValueError("resume wants the run folder in run=")
    if isinstance(optimizer, str) and lr_scheduler is not None:
        raise ValueError(f"{optimizer!r} has no learning rate to schedule: leave lr_scheduler away")
    folder = None if run is None else Path(run)
    job = _Job(
        model, loss, data, optimizer, prior, schedule, update, num_data, batch_size, iterations
    )
    job.lr_scheduler, job.seed = lr_scheduler, seed
    trained = {"network": model, "prior": prior, "loss": loss}
    modules = {name: each for name, each in trained.items() if isinstance(each, nn.Module)}
    stopping = EarlyStopping(modules, patience)
    history, done = History(), 0
    began = time.monotonic()

    def record(epoch: int) -> None:
        parts = (data if measure_train else None, validation)
        functions = (loss, measure or loss)
        scores = [
            [math.nan] * 2 if part is None else means(model, functions, part) for part in parts
        ]
        job.record(history, epoch, *scores, seconds=time.monotonic() - began)

    def save(epoch: int, *, final: bool = False) -> None:
        if folder is not None:
            state = {"job": job.state_dict(), "best": stopping.state_dict()}
            runs.save_checkpoint(
                folder,
                epoch,
                network=model,
                prior=prior,
                history=history,
                training=state,
                final=final,
            )

    try:
        if resume and folder is not None and runs.has_checkpoint(folder):
            saved = runs.load_run(folder, resumable=True)
            done, history = saved.epoch, saved.history
            runs.restore_(saved, model, prior)
            job.load_state_dict(saved.training["job"])
            stopping.load_state_dict(saved.training["best"])
            began -= history.scalars["seconds"][-1]
            if done > epochs:
                raise ValueError(f"the run has done {done} epochs already; got epochs={epochs}")
        else:
            if folder is not None:
                runs.claim(folder)
            record(0)
            save(0)
        for epoch in _progress(range(done + 1, epochs + 1), epochs, history, progress):
            if stopping.stale:
                break
            job.epoch(epoch)
            record(epoch)
            job.schedule_rate(history)
            stopping.see(history.scalars["validation_measure"][-1])
            save(epoch)
            done = epoch
            if callback is not None:
                callback(epoch, history)
    finally:
        job.close()
    if stopping.restore_():
        record(done)  # the network that is returned is the last record's
    save(done, final=True)
    return history


class _Job:
    """One fit: everything that an epoch needs, and its state for a checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Data,
        optimizer: Optimizer | str,
        prior: MixturePrior | None,
        schedule: Schedule | None,
        update: Update | None,
        num_data: int | None,
        batch_size: int,
        iterations: int,
    ) -> None:
        self.model, self.loss, self.data, self.prior = model, loss, data, prior
        self.optimizer = optimizer
        self.batch_size, self.iterations = batch_size, iterations
        self.num_data = _count(data, num_data)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(f"the model {type(model).__name__} has no parameters to train")
        self.lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.seed = 0
        self.steps = 0
        self.attachment: Attachment | None = None
        loss_parameters = list(loss.parameters()) if isinstance(loss, nn.Module) else []
        mixture_parameters = list(prior.parameters()) if prior is not None else []
        self.parameters = [
            p
            for p in (*model.parameters(), *loss_parameters, *mixture_parameters)
            if p.requires_grad
        ]
        if isinstance(optimizer, str):
            if optimizer not in METHODS:
                raise ValueError(
                    f"optimizer must be a torch optimiser, 'l-bfgs' or 'cg'; got {optimizer!r}"
                )
            if not is_pair(data):
                raise ValueError(
                    f"{optimizer!r} is full-batch: it wants the data as two tensors (x, y)"
                )
            self.schedule = schedule or Schedule(em_every=1)
            return
        self.schedule = schedule or Schedule()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held.isdisjoint(map(id, model.parameters())):
            raise ValueError("the optimiser holds no parameter of this model: make it over its own")
        loose = [p for p in loss_parameters if p.requires_grad and id(p) not in held]
        if loose:
            raise ValueError(
                "the loss has parameters that the optimiser does not hold: make it over "
                "[*model.parameters(), *loss.parameters()]"
            )
        if prior is not None:
            self.attachment = prior.attach(
                optimizer, num_data=self.num_data, schedule=self.schedule, update=update
            )

    def epoch(self, number: int) -> None:
        """One pass over the batches, or one round of the full-batch method."""
        self.model.train()
        if isinstance(self.optimizer, str):
            self._round(self.optimizer)
            return
        before = self.steps
        for x, y in self._batches(number):
            self.optimizer.zero_grad()
            value = self.loss(self.model(x), y)
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value.item()} at step {self.steps}: lower the learning rate or "
                    "tau; the last checkpoint is intact"
                )
            value.backward()
            self.optimizer.step()
            self.steps += 1
        if self.steps == before:
            raise ValueError(
                "the data gave no batch: give two tensors, a list of batches or a DataLoader, "
                "which can be gone through in every epoch"
            )

    def schedule_rate(self, history: History) -> None:
        """Step the learning-rate scheduler, by the measure if it is one that asks for it."""
        if isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            name = "validation_measure"
            value = history.scalars[name][-1]
            self.lr_scheduler.step(history.scalars["objective"][-1] if math.isnan(value) else value)
        elif self.lr_scheduler is not None:
            self.lr_scheduler.step()

    def _batches(self, number: int) -> Iterator[Batch]:
        device = next(self.model.parameters()).device
        if not is_pair(self.data):
            yield from ((x.to(device), y.to(device)) for x, y in self.data)
            return
        x, y = self.data
        # Seeded by the epoch, so that the order needs no state of its own.
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        for rows in torch.randperm(len(x), generator=shuffle).split(self.batch_size):
            yield x[rows].to(device), y[rows].to(device)

    def _round(self, method: str) -> None:
        moving = self.parameters
        if self.prior is not None and not self.schedule.mixture_moves_at(self.steps):
            held = set(map(id, self.prior.parameters()))
            moving = [p for p in moving if id(p) not in held]
        assert is_pair(self.data)  # checked when the job was made
        x, y = (part.to(moving[0].device) for part in self.data)
        tau = self.schedule.tau_at(self.steps)

        def objective() -> Tensor:
            total = self.num_data * self.loss(self.model(x), y)
            if self.prior is not None and tau > 0.0:
                total = total + tau * self.prior.penalty()
            return total

        end = minimize_(objective, moving, method=method, iterations=self.iterations)
        if not math.isfinite(end):
            raise FloatingPointError(
                f"the objective is {end} in round {self.steps + 1}: lower tau, or raise "
                "std_count of the hyper-prior; the last checkpoint is intact"
            )
        self.steps += 1
        if self.prior is not None:
            advance_(self.prior, self.schedule, self.steps)

    @torch.no_grad()
    def record(
        self,
        history: History,
        epoch: int,
        train: list[float],
        validation: list[float],
        *,
        seconds: float,
    ) -> None:
        """Append a record to the history."""
        tick = self.steps if self.attachment is None else self.attachment.tick
        tau = self.schedule.tau_at(tick)
        nll = hyper = penalty = 0.0
        groups = {}
        if self.prior is not None:
            for group, terms in self.prior.terms().items():
                nll += terms["nll"].item()
                hyper += terms["hyper_prior"].item()
                moments = self.prior.moments(group)
                mixture = self.prior.mixtures[group]
                groups[group] = (self.prior.flat_weights(group), mixture, moments.count)
            penalty = self.prior.penalty().item()
        scalars = {
            "epoch": epoch,
            "step": self.steps,
            "seconds": seconds,
            "tau": tau,
            "data_loss": train[0],
            "nll": nll,
            "hyper_prior": hyper,
            "objective": train[0] + tau / self.num_data * penalty,
            "train_measure": train[1],
            "validation_measure": validation[1],
        }
        history.record(scalars, groups)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, beside the network and the prior."""
        state: dict[str, Any] = {"steps": self.steps, "rng": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda_rng"] = torch.cuda.get_rng_state_all()
        if isinstance(generator := getattr(self.data, "generator", None), torch.Generator):
            state["loader_rng"] = generator.get_state()
        for name, part in self._stateful():
            state[name] = part.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.steps = state["steps"]
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        if "loader_rng" in state:
            self.data.generator.set_state(state["loader_rng"])  # type: ignore[union-attr]
        for name, part in self._stateful():
            part.load_state_dict(state[name])

    def _stateful(self) -> Iterator[tuple[str, Any]]:
        if isinstance(self.optimizer, Optimizer):
            yield "optimizer", self.optimizer
        if isinstance(self.loss, nn.Module):
            yield "loss", self.loss
        if self.attachment is not None:
            yield "attachment", self.attachment
        if self.lr_scheduler is not None:
            yield "lr_scheduler", self.lr_scheduler

    def close(self) -> None:
        """Take the prior out of the optimiser."""
        if self.attachment is not None:
            self.attachment.remove()


def _count(data: Data, num_data: int | None) -> int:
    if is_pair(data) and len(data[0]) != len(data[1]):
        raise ValueError(f"x and y want one length; got {len(data[0])} and {len(data[1])}")
    if iter(data) is data:
        raise ValueError(
            "the data are an iterator, which can be gone through once only: give two tensors, a "
            "list of batches or a DataLoader"
        )
    if num_data is not None:
        return num_data
    if is_pair(data):
        return len(data[0])
    dataset = getattr(data, "dataset", None)
    if not isinstance(dataset, Sized):
        raise ValueError(
            "num_data, the number of training examples, cannot be read off the data: give it"
        )
    return len(dataset)


def _progress(
    epochs: Iterable[int], total: int, history: History, show: bool | str
) -> Iterator[int]:
    if show is False:
        yield from epochs
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        *([TextColumn(show, markup=False)] if isinstance(show, str) else []),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=total)
        for epoch in epochs:
            bar.update(task, completed=epoch - 1, description=_headline(history))
            yield epoch
            bar.update(task, completed=epoch, description=_headline(history))


def _headline(history: History) -> str:
    if not len(history):
        return ""
    last = {name: values[-1] for name, values in history.scalars.items()}
    shown = {n: last[f"{n}_measure"] for n in ("train", "validation")}
    shown = {"objective": last["objective"], **shown}
    parts = [f"{name} {value:.4g}" for name, value in shown.items() if not math.isnan(value)]
    mixtures = [g for g in history.groups if history.stacked(g, "mean").shape[1] > 1]
    clusters = "+".join(f"{history.num_clusters(g)[-1]:.0f}" for g in mixtures)
    return "  ".join([*parts, *([f"clusters {clusters}"] if clusters else [])])
