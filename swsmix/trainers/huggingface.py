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
        prior: on the Trainer's model or a part of it; `options` are those of its `attach`.

    Example:
        >>> list(PriorCallback(MixturePrior(torch.nn.Linear(8, 3), 4), num_data=512).state())
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
        names = list(self.prior.selection.names)
        if state.global_step > 0:
            kept = state.stateful_callbacks.get(type(self).__name__) or []
            texts = [one["saved"] for one in (kept if isinstance(kept, list) else [kept])]
            every = [torch.load(BytesIO(b64decode(t)), "cpu", weights_only=True) for t in texts]
            saved = [one for one in every if one.get("weights", names) == names]
            if not saved:
                raise ValueError(
                    f"training must resume from a checkpoint saved with a PriorCallback of {names};"
                    f" got {len(every)} of others: start anew, or omit the callback"
                )
            self.prior.load_state_dict(saved[-1]["prior"])
            self.attachment.load_state_dict(saved[-1]["clock"])  # a list grows

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Detach; the mixtures stay as they are."""
        if self.attachment is not None:
            self.attachment.remove()

    def state(self) -> dict[str, Any]:
        """The mixtures and the clock, as text for JSON."""
        clock = self.attachment.state_dict() if self.attachment else None
        saved = {"prior": self.prior.state_dict(), "clock": clock}
        torch.save({**saved, "weights": list(self.prior.selection.names)}, file := BytesIO())
        return {"saved": b64encode(file.getvalue()).decode()}
