"""The history in TensorBoard, which `pip install "swsmix[tensorboard]"` brings."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from swsmix.training.history import History


def tensorboard(folder: str | os.PathLike[str]) -> Callable[[int, History], None]:
    """A callback for `fit` that writes the history to TensorBoard, one record at a time.

    Scalars: the loss terms and measures under `loss/`, and for each mixture and component
    `GROUP/mean/J`, `GROUP/std/J`, `GROUP/mixing/J` and `GROUP/count/J` (N_j), and
    `GROUP/clusters`; the weights' histograms as `GROUP/weights`. The step is the epoch. It
    reads the history alone, so that an old run can be written too:
    `tensorboard("logs")(0, load_run(path).history)`.

    Args:
        folder: for TensorBoard's event file; `tensorboard --logdir` names it or one above it.

    Returns:
        The callback, callback(epoch, history).

    Raises:
        ModuleNotFoundError: if TensorBoard is not installed.

    Example:
        >>> fit(model, loss, data, optimizer=adam, epochs=9, prior=prior,
        ...     callback=tensorboard("logs"))  # doctest: +SKIP
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            'TensorBoard is not installed: pip install "swsmix[tensorboard]"'
        ) from error
    writer: Any = SummaryWriter(os.fspath(folder))
    written = 0

    def callback(epoch: int, history: History) -> None:
        nonlocal written
        for record in range(written, len(history)):
            _write(writer, history, record)
        written = len(history)
        writer.flush()

    return callback


def _write(writer: Any, history: History, record: int) -> None:
    epochs = history.scalars.get("epoch")
    step = int(epochs[record]) if epochs else record
    for name, values in history.scalars.items():
        if name != "epoch" and math.isfinite(values[record]):
            writer.add_scalar(f"loss/{name}", values[record], step)
    for group, columns in history.series.items():
        for name in ("mean", "std", "mixing", "count"):
            for j, value in enumerate(columns[name][record].tolist()):
                writer.add_scalar(f"{group}/{name}/{j}", value, step)
        clusters = int(history.num_clusters(group)[record])
        writer.add_scalar(f"{group}/clusters", clusters, step)
        counts, edges = columns["bin_counts"][record], columns["bin_edges"][record]
        middles = (edges[1:] + edges[:-1]) / 2
        writer.add_histogram_raw(
            f"{group}/weights",
            min=edges[0].item(),
            max=edges[-1].item(),
            num=int(counts.sum()),
            sum=(counts * middles).sum().item(),
            sum_squares=(counts * middles**2).sum().item(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
