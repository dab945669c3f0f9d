"""What an attachment refuses: optimisers that do not hold the prior, or cannot minimise it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from swsmix.attach import _optimizers, proximal
from swsmix.selection import resolve

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior


def check_alone(optimizers: Sequence[Optimizer], others: Sequence[Optimizer]) -> None:
    """Check that no optimiser comes twice, nor is one of the prior's other attachments.

    Raises:
        ValueError: if one does: the prior would act twice.
    """
    mine = set(map(id, optimizers))
    if len(mine) < len(optimizers) or not mine.isdisjoint(map(id, others)):
        raise ValueError(
            "this prior is attached to this optimiser already and would act twice: .remove() "
            "the other attachment first (fit makes one of its own)"
        )


def check_held(prior: MixturePrior, optimizers: Sequence[Optimizer]) -> None:
    """Check that the optimisers hold the prior's tensors, and in mode "gradient" its mixtures.

    Raises:
        ValueError: if not; the message names the tensors.
    """
    held = {id(p) for optimizer in optimizers for p in _optimizers.parameters_of(optimizer)}
    wanted = resolve(prior._model[0], prior.selection.names)
    missing = [name for name, p in wanted.items() if id(p) not in held]
    if missing:
        raise ValueError(
            f"these tensors of the prior are in no attached optimiser: {missing}. Give the "
            "optimiser the model's current parameters (after any wrapping), or leave the "
            "tensors out of the prior with exclude="
        )
    if prior.mode == "gradient" and not all(id(p) in held for p in prior.parameters()):
        raise ValueError(
            "in mode 'gradient' an optimiser must hold the mixtures too: add a parameter group "
            "{'params': prior.parameters(), 'lr': ...}"
        )


def check_minimises(optimizer: Optimizer) -> None:
    """Check that an optimiser minimises, as the prior's penalty asks.

    Raises:
        ValueError: if it maximises.
    """
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("the prior is minimised; got an optimiser with maximize=True")


def check_proximal(prior: MixturePrior, optimizers: Sequence[Optimizer]) -> None:
    """Check that the proximal step can be made.

    Raises:
        ValueError: in mode "gradient", and if the step of an optimiser is not known.
    """
    if prior.mode == "gradient":
        raise ValueError("the proximal step needs mode='em'; use update='gradient'")
    for optimizer in optimizers:
        if not proximal.is_known(optimizer):
            raise ValueError(
                "the proximal step needs the own step of SGD (momentum below 1), Adam or "
                f"AdamW, whose effective step is known; got {type(optimizer).__name__}: "
                "use update='gradient'"
            )


def check_clock(
    state: Mapping[str, object], *, scheduled: bool, earlier: str = "Schedule()"
) -> None:
    """Check that a saved clock is one of this kind.

    Args:
        state: the saved clock.
        scheduled: whether this one has a schedule.
        earlier: what earlier versions took when none was given.

    Raises:
        ValueError: if the one has a schedule, and the other lets the data decide.
    """
    if ("entry" in state) == scheduled:
        saved, here = ("no ", "a ") if scheduled else ("a ", "no ")
        raise ValueError(
            f"the saved clock had {saved}schedule, this one has {here}schedule: continue "
            f"with the same (`{earlier}` is what earlier versions took when none was given)"
        )
