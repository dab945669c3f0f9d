"""The prior in Lightning: attached, saved and resumed by a callback."""

from __future__ import annotations

from typing import Any

import lightning

from swsmix.attach import Attachment
from swsmix.prior import MixturePrior


class PriorCallback(lightning.Callback):
    """Trains a Lightning module under a prior, and keeps prior and clock in its checkpoints.

    Args:
        prior: on the module or a part of it; moved to the module's device.
        options: of `MixturePrior.attach`. `attachment` is None before training.

    Example:
        >>> callback = PriorCallback(MixturePrior(torch.nn.Linear(8, 3), 4), num_data=512)
        >>> callback.state_dict()["clock"] is None  # Trainer(callbacks=[callback])
        True
    """

    def __init__(self, prior: MixturePrior, **options: Any) -> None:
        self.prior, self.options = prior, options
        self.attachment: Attachment | None = None
        self._clock: dict[str, Any] | None = None  # of a checkpoint, until training begins

    @property
    def state_key(self) -> str:
        """Of this prior's weights, so that a Trainer may have several such callbacks."""
        return self._generate_state_key(weights=self.prior.selection.names)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Attach to the optimisers, which are made and restored by now."""
        if trainer.ckpt_path and self._clock is None:
            file = f"{trainer.ckpt_path} was saved without this PriorCallback"
            raise ValueError(f"{file}: start anew, or load its weights alone")
        self.prior.to(pl_module.device)
        self.attachment = self.prior.attach(trainer.optimizers, **self.options)
        if self._clock is not None:
            self.attachment.load_state_dict(self._clock)

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Detach, also after an error; the clock goes on in the next `fit`."""
        if self.attachment is not None:
            self._clock = self.attachment.state_dict()
            self.attachment.remove()

    def state_dict(self) -> dict[str, Any]:
        """The mixtures and the clock."""
        clock = self._clock if self.attachment is None else self.attachment.state_dict()
        return {"prior": self.prior.state_dict(), "clock": clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the mixtures; the clock follows when training begins."""
        self.prior.load_state_dict(state_dict["prior"])
        self._clock = state_dict["clock"]
