"""Early stopping: the best state of some modules so far, by a measure on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class EarlyStopping:
    """Remember the best state of some modules; stop after so many epochs without a better one.

    Args:
        modules: name -> what is remembered, by its `state_dict`.
        patience: the epochs to wait for a better value; None never stops and remembers nothing.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> stopping = EarlyStopping({"network": net}, patience=2)
        >>> for value in (0.3, 0.5, 0.4):
        ...     stopping.see(value)
        >>> stopping.stale, stopping.restore_()
        (True, True)
    """

    def __init__(self, modules: Mapping[str, nn.Module], patience: int | None) -> None:
        self.modules, self.patience = modules, patience
        self.value, self.since = math.inf, 0
        self.states: dict[str, dict[str, Tensor]] = {}

    @property
    def stale(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.since >= self.patience

    def see(self, value: float) -> None:
        """Take an epoch's value into account; lower is better."""
        if self.patience is None:
            return
        self.since += 1
        if value < self.value:
            self.value, self.since = value, 0
            self.states = {
                name: {key: tensor.clone() for key, tensor in module.state_dict().items()}
                for name, module in self.modules.items()
            }

    def restore_(self) -> bool:
        """Go back to the best state.

        Returns:
            Whether anything changed: not without a best state, nor if the current one is it.
        """
        if not self.states or self.since == 0:
            return False
        for name, state in self.states.items():
            self.modules[name].load_state_dict(state)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes.

        Returns:
            The best value and states, and the epochs since.
        """
        return {name: getattr(self, name) for name in ("value", "since", "states")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if the best state is not one of these modules.
        """
        states = state["states"]
        for name in {*states, *self.modules} if states else ():
            saved, own = (
                {key: tuple(t.shape) for key, t in tensors.items()}
                for tensors in (states.get(name, {}), _state_of(self.modules.get(name)))
            )
            # Runs of before have neither.
            for key in [k for k in own if k.endswith((".steps", ".start_std"))]:
                saved.setdefault(key, own[key])
            if saved != own:
                differ = sorted(k for k in {*saved, *own} if saved.get(k) != own.get(k))
                raise ValueError(f"the best state of the {name} is of another one: {differ}")
        self.value, self.since, self.states = state["value"], state["since"], states


def _state_of(module: nn.Module | None) -> dict[str, Tensor]:
    return {} if module is None else module.state_dict()
