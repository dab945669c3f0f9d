"""Inputs for calibration: batches of any kind, a part of each held out, fed to a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Tensor | Iterable[Any]
Output = Callable[[Any], Tensor]
_ROWS = 256  # of a batch, where one tensor holds all inputs
_QUARTER = 4  # one row or batch of four is held out


def batches_of(inputs: Inputs, device: torch.device) -> tuple[list[Any], list[Any]]:
    """Batches on the network's device: those to calibrate with, and those held out.

    The last quarter of each batch is held out; batches of fewer than four examples (or of tensors
    that do not agree on how many they have) go whole, every fourth of them to the held-out ones.

    Raises:
        ValueError: if there are no inputs.
    """
    given = inputs.split(_ROWS) if isinstance(inputs, Tensor) else inputs
    used: list[Any] = []
    held: list[Any] = []
    whole: list[Any] = []
    for batch in given:
        batch = mapped(batch, lambda t: t.detach().to(device))
        sizes = {t.shape[0] if t.ndim else 0 for t in tensors(batch)}
        rows = sizes.pop() if len(sizes) == 1 else 0
        if sizes or rows < _QUARTER:
            if rows or sizes:
                whole.append(batch)
            continue
        cut = rows - rows // _QUARTER
        for part, kept in ((used, slice(cut)), (held, slice(cut, None))):
            part.append(_rows_of(batch, kept))
    for number, batch in enumerate(whole):
        (held if number % _QUARTER == _QUARTER - 1 else used).append(batch)
    if not used:
        raise ValueError(
            "needs at least one batch of inputs (a tensor, a tuple of arguments or a mapping of "
            "keyword arguments), got none: a generator may be used up, pass a list of batches"
        )
    return used, held or used


def _rows_of(batch: Any, kept: slice) -> Any:
    """Some rows of each tensor of a batch."""

    def rows(t: Tensor) -> Tensor:
        return t[kept]

    return mapped(batch, rows)


def call(model: nn.Module, batch: Any) -> Any:
    """The network's answer to a batch: a tensor, the tuple of its arguments, or its keywords."""
    try:
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, tuple | list) else model(batch)
    except TypeError as error:
        given = "a tuple" if isinstance(batch, tuple | list) else type(batch).__name__
        error.add_note(
            f"the network was called with a batch that is {given}: a tuple or list must hold the "
            "network's arguments and a mapping its keywords; leave labels out, as in "
            "[x for x, _ in loader]"
        )
        raise


def first_tensor(answer: Any) -> Tensor:
    """The first floating-point tensor of an answer, or its `logits`.

    Raises:
        TypeError: if there is none.
    """
    logits = answer.get("logits") if isinstance(answer, Mapping) else None
    if isinstance(logits, Tensor):
        return logits
    for t in tensors(answer):
        if t.is_floating_point():
            return t
    raise TypeError(
        f"needs a network that answers with floating-point tensors, got {type(answer).__name__}: "
        "pass output=, a function from its answer to the tensor that counts"
    )


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A batch with each of its tensors replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {k: mapped(v, function) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return tuple(mapped(v, function) for v in tree)
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of a batch or an answer, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for v in tree.values():
            yield from tensors(v)
    elif isinstance(tree, list | tuple):
        for v in tree:
            yield from tensors(v)
