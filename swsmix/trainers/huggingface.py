"""The prior in the Hugging Face Trainer: attached, saved and resumed by a callback."""

from __future__ import annotations

from base64 import b64decode, b64encode
from io import BytesIO
from typing import Any

import torch
from transformers.trainer_callback import ExportableState, TrainerCallback

from swsmix.attach import Attachment
from swsmix.prior import MixturePrior


class PriorCallback(TrainerCallback, ExportableState):
    """Trains a model under a prior, and keeps prior and clock in `trainer_state.json`.

    Args:
        prior: on the Trainer's model or a part of it; moved to its device.
        options: of `MixturePrior.attach`: `num_data`, `tau`, `schedule`, ...

    Attributes:
        attachment: while training and after it, None before.

    Example:
        >>> callback = PriorCallback(MixturePrior(torch.nn.Linear(8, 3), 4), num_data=512)
        >>> list(callback.state())  # Trainer(..., callbacks=[callback])
        ['saved']
    """

    def __init__(self, prior: MixturePrior, **options: Any) -> None:
        self.prior, self.options = prior, options
        self.attachment: Attachment | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Attach to the optimiser; when training is resumed, load the mixtures and the clock."""
        self.prior.to(next(given["model"].parameters()).device)
        self.on_train_end(args, state, control)  # of a training that an error has ended
        self.attachment = self.prior.attach(given["optimizer"], **self.options)
        if state.global_step > 0:
            if (kept := state.stateful_callbacks.get(type(self).__name__)) is None:
                raise ValueError(
                    "training must resume from a checkpoint saved with a PriorCallback; got a "
                    "trainer_state.json without one: start anew, or omit the callback"
                )
            saved = torch.load(BytesIO(b64decode(kept["saved"])), "cpu", weights_only=True)
            self.prior.load_state_dict(saved["prior"])
            self.attachment.load_state_dict(saved["clock"])

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Detach; the mixtures stay as they are."""
        if self.attachment is not None:
            self.attachment.remove()

    def state(self) -> dict[str, Any]:
        """The mixtures and the clock, as text for JSON."""
        clock = self.attachment.state_dict() if self.attachment else None
        torch.save({"prior": self.prior.state_dict(), "clock": clock}, file := BytesIO())
        return {"saved": b64encode(file.getvalue()).decode()}
