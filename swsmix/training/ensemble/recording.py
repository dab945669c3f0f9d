"""The histories of an ensemble's members, and what goes wrong with their mixtures."""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swsmix.diagnosis import Finding, PriorWarning, diagnose
from swsmix.training.evaluation import Batch, Loss
from swsmix.training.history import History

if TYPE_CHECKING:
    from swsmix.training.ensemble.trainers import Ensembled


class Records:
    """Appends a record of each member to its history.

    Args:
        trainer: what is recorded.
        validation: (x, y) on which the measure is taken, if any.
        measure: a mean over cases, lower is better; by default each member's loss.
        keep: whether histories are kept; without, only the last record's numbers are.
    """

    def __init__(
        self,
        trainer: Ensembled,
        validation: Batch | None,
        measure: Loss | None,
        *,
        keep: bool,
    ) -> None:
        self.trainer, self.validation, self.measure = trainer, validation, measure
        members = len(trainer.theta)
        self.histories = [History() for _ in range(members)] if keep else []
        self.objective = trainer.theta.new_full((members,), math.nan)
        self.last = self.objective.clone()  # the validation measure, else the objective per case
        self.began = time.monotonic()

    @torch.no_grad()
    def record(self, epoch: int) -> None:
        """Append one record to each history."""
        trainer = self.trainer
        theta, tau = trainer.theta.detach(), trainer.tau()
        data_term = trainer.stack.value(theta)
        terms = self._terms(theta)
        penalty = terms["penalty"]
        self.objective = data_term + tau * penalty
        per_case = self.objective / trainer.num_data
        validation = self._measured(theta, self.validation)
        self.last = per_case if self.validation is None else validation
        if not self.histories:
            return
        columns = {
            "epoch": torch.full_like(tau, epoch),
            "step": torch.full_like(tau, trainer.steps),
            "seconds": torch.full_like(tau, time.monotonic() - self.began),
            "tau": tau,
            "data_loss": data_term / trainer.num_data,
            "nll": terms["nll"],
            "hyper_prior": terms["hyper_prior"],
            "objective": per_case,
            "train_measure": self._measured(theta, trainer.stack.shared_cases()),
            "validation_measure": validation,
        }
        groups, found = self._groups(theta)
        for i, history in enumerate(self.histories):
            scalars = {name: column[i].item() for name, column in columns.items()}
            history.record(scalars, groups[i], found[i])

    def _terms(self, theta: Tensor) -> dict[str, Tensor]:
        mixtures = self.trainer.mixtures
        zero = torch.zeros_like(self.objective)
        if mixtures is None:
            return {"nll": zero, "hyper_prior": zero, "penalty": zero}
        nll, hyper = mixtures.terms(theta)
        penalty = sum((mixtures.tau[g] * (nll[g] + hyper[g]) for g in mixtures.groups), zero)
        return {
            "nll": sum(nll.values(), zero),
            "hyper_prior": sum(hyper.values(), zero),
            "penalty": penalty,
        }

    def _measured(self, theta: Tensor, data: Batch | None) -> Tensor:
        if data is None:
            return torch.full_like(self.objective, math.nan)
        stack = self.trainer.stack
        outputs = stack.outputs(theta, data[0])
        y = data[1].to(outputs.device)
        y = y.to(stack.dtype) if y.is_floating_point() else y
        if self.measure is None:
            return stack.losses_at(theta, outputs, y)
        return torch.stack([self.measure(out, y).to(theta) for out in outputs])

    def _groups(self, theta: Tensor) -> tuple[list[dict[str, Any]], list[dict[str, list[Finding]]]]:
        members = range(len(self.histories))
        groups: list[dict[str, Any]] = [{} for _ in members]
        found: list[dict[str, list[Finding]]] = [{} for _ in members]
        if (mixtures := self.trainer.mixtures) is None:
            return groups, found
        for g in mixtures.groups:
            plain = mixtures.plain(g)
            count = mixtures.moments_of(g, theta).count
            for i in members:
                one = plain.member(i)
                groups[i][g] = theta[i, mixtures.columns[g]], one, count[i]
                found[i][g] = self._findings(g, i, one, count[i])
        return groups, found

    def _findings(self, group: str, member: int, mixture: Any, count: Tensor) -> list[Finding]:
        """Collapsed and diverged; the others need a watch over every step."""
        mixtures = self.trainer.mixtures
        assert mixtures is not None
        start = mixtures.priors[member]._state(group).start_std.item()
        return [
            f for f in diagnose(mixture, count, start, 0.0) if f.kind in ("collapsed", "diverged")
        ]

    def middle(self) -> int:
        """The member whose last measure is the ceil(b / 2)-th best: the fifth of ten."""
        order = self.last.nan_to_num(torch.inf).argsort(stable=True)
        return int(order[(len(order) - 1) // 2])

    def headline(self) -> str:
        """The last record in one line: mean and standard deviation over members.

        Without histories nothing: members of several settings have no common mean.
        """
        if not self.histories:
            return ""
        name = "objective" if self.validation is None else "validation"
        spread = self.last.std(correction=min(1, len(self.last) - 1)).item()
        return f"{name} {self.last.mean().item():.4g} ± {spread:.2g}"

    def warn(self) -> None:
        """Say what went wrong, once for each kind.

        Warns:
            PriorWarning: with the members, the number of the worst, and the remedy.
        """
        _, found = self._groups(self.trainer.theta.detach())
        kinds: dict[str, list[tuple[int, Finding]]] = {}
        for member, groups in enumerate(found):
            for of_group in groups.values():
                for finding in of_group:
                    kinds.setdefault(finding.kind, []).append((member, finding))
        for each in kinds.values():
            members = sorted({member for member, _ in each})
            warnings.warn(
                f"the prior's mixture of {len(members)} of {len(found)} members "
                f"({', '.join(map(str, members[:8]))}{', ...' if len(members) > 8 else ''}) "
                f"{each[0][1].message}",
                PriorWarning,
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """The histories, and the last record's numbers."""
        return {
            "histories": [history.to_tensors() for history in self.histories],
            "objective": self.objective,
            "last": self.last,
            "seconds": time.monotonic() - self.began,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if len(state["histories"]) != len(self.histories):
            raise ValueError("the run has other histories: give the same record=")
        self.histories[:] = [History.from_tensors(dict(each)) for each in state["histories"]]
        self.objective, self.last = state["objective"], state["last"]
        self.began = time.monotonic() - float(state["seconds"])
