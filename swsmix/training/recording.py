"""What a training run records: how it does on the data, and where the prior stands."""

from __future__ import annotations

import math
import time

from swsmix.diagnosis import findings
from swsmix.training.evaluation import Data, Loss, means
from swsmix.training.history import History
from swsmix.training.trainer import Trainer


class Recorder:
    """Appends records of a trainer to a history.

    Args:
        trainer: what is recorded.
        train: the data on which the loss and the measure are taken; None records nan.
        validation: data on which the measure is taken too, if any.
        measure: a mean over a batch, lower is better.
        history: the history to continue; its time goes on.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        train: Data | None,
        validation: Data | None,
        measure: Loss,
        history: History,
    ) -> None:
        self.trainer, self.history = trainer, history
        self.train, self.validation, self.measure = train, validation, measure
        self.began = time.monotonic() - history.scalars.get("seconds", [0.0])[-1]

    def record(self, epoch: int) -> None:
        """Append one record.

        The weights of the prior are read once for the penalty and the moments together.
        """
        trainer = self.trainer
        data_loss, train_measure = self._scores(self.train)
        _, validation_measure = self._scores(self.validation)
        tau = trainer.tau
        nll = hyper = penalty = 0.0
        groups, found = {}, {}
        if (prior := trainer.prior) is not None:
            state = prior.evaluate()
            penalty = state.penalty.item()
            for group, terms in state.terms.items():
                nll += terms["nll"].item()
                hyper += terms["hyper_prior"].item()
                weights, count = prior.flat_weights(group), state.moments[group].count
                groups[group] = (weights, prior.mixtures[group], count)
                annealed = trainer.schedule.std_start is not None
                found[group] = findings(prior, group, annealed=annealed)
        scalars = {
            "epoch": epoch,
            "step": trainer.steps,
            "seconds": time.monotonic() - self.began,
            "tau": tau,
            "data_loss": data_loss,
            "nll": nll,
            "hyper_prior": hyper,
            "objective": data_loss + tau / trainer.num_data * penalty,
            "train_measure": train_measure,
            "validation_measure": validation_measure,
        }
        self.history.record(scalars, groups, found)

    def _scores(self, data: Data | None) -> list[float]:
        """The loss and the measure; nan without data."""
        functions = (self.trainer.loss, self.measure)
        return [math.nan] * 2 if data is None else means(self.trainer.model, functions, data)

    @property
    def score(self) -> float:
        """What the last epoch is judged by: the validation measure, else the objective."""
        last = {name: values[-1] for name, values in self.history.scalars.items()}
        validation = last["validation_measure"]
        return last["objective"] if math.isnan(validation) else validation

    def headline(self) -> str:
        """The last record in one line: what is not nan of the objective, measures and clusters."""
        if not len(self.history):
            return ""
        last = {name: values[-1] for name, values in self.history.scalars.items()}
        named = {"objective": last["objective"]}
        named |= {name: last[f"{name}_measure"] for name in ("train", "validation")}
        parts = [f"{name} {value:.4g}" for name, value in named.items() if not math.isnan(value)]
        several = [g for g in self.history.groups if self.history.stacked(g, "mean").shape[1] > 1]
        if several:
            clusters = (f"{self.history.num_clusters(group)[-1]:.0f}" for group in several)
            parts.append(f"clusters {'+'.join(clusters)}")
        return "  ".join(parts)
