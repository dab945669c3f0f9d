"""Training by an optimiser over mini-batches; the prior is attached to its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from swsmix.attach import Attachment, MomentsOf, Update, _optimizers
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training.evaluation import Batch, Data, Loss, is_pair

_LIKE_THE_WEIGHTS = {  # entries of PyTorch's optimisers, each of the shape of its parameter
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg",
    "acc_delta", "exp_inf",
}  # fmt: skip


class BatchTrainer:
    """An epoch is one pass over the batches; the interface is that of `Trainer`.

    Args:
        model: the network.
        loss: the mean negative log likelihood of a batch.
        data: two tensors, shuffled anew in each epoch, or batches.
        optimizer: over the parameters of the model, of the loss and, in mode "gradient", of the
            prior.
        num_data: the number of training examples.
        prior: attached to the optimiser, if any.
        schedule: of the prior; by default it enters by itself, see `swsmix.attach.entry`.
        update: how the prior moves the weights, see `MixturePrior.attach`.
        moments: what EM is over, see `MixturePrior.attach`.
        batch_size: for two tensors; of other data their own `batch_size` counts.
        lr_scheduler: stepped after every epoch.
        seed: for shuffling.

    Raises:
        ValueError: if the optimiser does not hold the parameters that it must.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Data,
        optimizer: Optimizer,
        *,
        num_data: int,
        prior: MixturePrior | None = None,
        schedule: Schedule | None = None,
        update: Update | None = None,
        moments: MomentsOf = "maximum",
        batch_size: int = 128,
        lr_scheduler: LRScheduler | None = None,
        seed: int = 0,
    ) -> None:
        _check_held(optimizer, model, loss)
        self.model, self.loss, self.data, self.prior = model, loss, data, prior
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.num_data, self.batch_size, self.seed = num_data, batch_size, seed
        self.schedule = schedule or Schedule()
        self.steps = 0
        self._resumed = False  # the optimiser's state is from a file, and has not been used
        self.attachment: Attachment | None = None
        if prior is not None:
            self.attachment = prior.attach(
                optimizer, num_data=num_data, schedule=schedule, update=update,
                moments=moments,
                batch_size=batch_size if is_pair(data) else getattr(data, "batch_size", None),
            )  # fmt: skip
        elif moments != "maximum":
            raise ValueError(f"moments={moments!r} needs a prior")

    @property
    def tick(self) -> int:
        """The attachment's clock, or the number of steps."""
        return self.steps if self.attachment is None else self.attachment.tick

    @property
    def parts(self) -> dict[str, str]:
        """The classes of the optimiser, within its wrappers, and of the scheduler."""
        held = set(map(id, self.model.parameters()))
        steppers = _optimizers.innermost(self.optimizer, held)
        parts = {"optimizer": ", ".join(sorted({type(each).__name__ for each in steppers}))}
        if self.lr_scheduler is not None:
            parts["lr_scheduler"] = type(self.lr_scheduler).__name__
        return parts

    @property
    def tau(self) -> float:
        """The strength at which the prior acts in the next step."""
        return self.schedule.tau_at(self.steps) if not self.attachment else self.attachment.tau

    def epoch(self, number: int) -> None:
        """One pass over the batches.

        Raises:
            FloatingPointError: if the loss is not finite.
            ValueError: if there is no batch.
        """
        self.model.train()
        before = self.steps
        for x, y in self._batches(number):
            self.optimizer.zero_grad()
            value = self.loss(self.model(x), y)
            if not torch.isfinite(value):
                mend = "lower the learning rate or tau; the last checkpoint is intact"
                if not self.steps:
                    mend = "before any step: look for nan or inf in the data and in the network"
                raise FloatingPointError(f"the loss is {value.item()} at step {self.steps}: {mend}")
            value.backward()
            if self.attachment is not None and self.attachment.entry is not None:
                self.attachment.observe(value.detach())
            self._step()
            self.steps += 1
        if self.steps == before:
            raise ValueError(
                "the data gave no batch: give two tensors, a list of batches or a DataLoader, "
                "which can be iterated over in every epoch"
            )

    def _step(self) -> None:
        """A step of the optimiser; the first one after a resume shows whether its state fits."""
        try:
            self.optimizer.step()
        except Exception as error:
            if not self._resumed or _is_sentence(error):
                raise
            raise ValueError(
                "the training state that was resumed (training.pt) is damaged, or of another "
                f"optimiser: the first step of {type(self.optimizer).__name__} failed "
                f"({type(error).__name__}: {error}). Restore it from a backup, or train again"
            ) from error
        self._resumed = False

    def _batches(self, number: int) -> Iterator[Batch]:
        device = next(self.model.parameters()).device
        if not is_pair(self.data):
            yield from ((x.to(device), y.to(device)) for x, y in self.data)
            return
        x, y = self.data
        # Seeded by the epoch, so that the order needs no state of its own.
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(x), generator=shuffle, dtype=torch.int64, device="cpu")
        for rows in order.split(self.batch_size):
            yield x[rows].to(device), y[rows].to(device)

    def adapt_rate(self, score: float) -> None:
        """Step the learning-rate scheduler."""
        if isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.lr_scheduler.step(score)
        elif self.lr_scheduler is not None:
            self.lr_scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser, of the clock and of the learning-rate scheduler."""
        return {"steps": self.steps, **{k: part.state_dict() for k, part in self._parts().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if the optimiser's state is not of these parameters.
        """
        self.steps = state["steps"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for p, moments in self.optimizer.state.items():
            for name in _LIKE_THE_WEIGHTS & moments.keys():
                if isinstance(m := moments[name], Tensor) and m.shape != p.shape:
                    raise ValueError(
                        f"`{name}` of a tensor of shape {tuple(p.shape)} has the shape "
                        f"{tuple(m.shape)}"
                    )
        self._resumed = True

    def _parts(self) -> dict[str, Any]:
        parts = {
            "optimizer": self.optimizer,
            "attachment": self.attachment,
            "lr_scheduler": self.lr_scheduler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def close(self) -> None:
        """Take the prior out of the optimiser."""
        if self.attachment is not None:
            self.attachment.remove()


def _is_sentence(error: Exception) -> bool:
    """Whether this is an error of ours about the training: the weights are no longer finite."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return module.startswith("swsmix.") and isinstance(error, ValueError | ArithmeticError)


def _check_held(optimizer: Optimizer, model: nn.Module, loss: Loss) -> None:
    """Check that an optimiser holds parameters of the model, and all of the loss."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, model.parameters())):
        raise ValueError(
            "the optimiser holds no parameter of this model: make it over model.parameters()"
        )
    of_loss = loss.parameters() if isinstance(loss, nn.Module) else ()
    if any(p.requires_grad and id(p) not in held for p in of_loss):
        raise ValueError(
            "the loss has parameters that the optimiser does not hold: make it over "
            "[*model.parameters(), *loss.parameters()]"
        )
