"""A state_dict one tensor after another, so that the memory of one is enough."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from torch import Tensor

from swsmix.compression.report import TensorReport, tensor_report
from swsmix.compression.snap import Quantized, snapped_state

Choose = Callable[[str, Tensor], Quantized | None]


def snapped_tensors(
    state: Mapping[str, Tensor],
    choose: Choose,
    names: Iterable[str] | None = None,
    *,
    rest: Mapping[str, Tensor] | None = None,
    reports: dict[str, TensorReport] | None = None,
    seen: Callable[[str, Tensor], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors with their new values. Each is asked for when it is due, and then let go.

    Args:
        state: name -> tensor.
        choose: codebook and index of a tensor, or None to keep it.
        names: in which order; by default that of the state_dict.
        rest: the tensors that are not chosen, rounded perhaps; by default as they are.
        reports: receives what changed, of each tensor that does.
        seen: called with each tensor as it was.

    Yields:
        Name and tensor.

    Example:
        >>> import torch
        >>> half = Quantized(torch.tensor([0.5]), torch.zeros(2, dtype=torch.int64))
        >>> state = {"w": torch.tensor([0.4, 0.6]), "b": torch.ones(1)}
        >>> dict(snapped_tensors(state, lambda name, t: half if name == "w" else None))
        {'w': tensor([0.5000, 0.5000]), 'b': tensor([1.])}
    """
    for name in state if names is None else names:
        t = state[name]
        if seen is not None:
            seen(name, t)
        found = choose(name, t)
        if found is not None:
            dtype = t.dtype
            if reports is not None:
                reports[name] = tensor_report(name, t, found)
            del t  # at most three copies of a tensor are in memory at a time
            t = found.values.to(dtype)
        elif rest is not None:
            t = rest[name]
        del found
        yield name, t
        del t


class Rounded(Mapping[str, Tensor]):
    """A state_dict whose biases and norms are rounded as they are asked for.

    Args:
        state: name -> tensor.
        bias_bits: 8, 16 or None, see `snapped_state`.
        keep: the names of tensors that are not rounded.
    """

    def __init__(
        self, state: Mapping[str, Tensor], bias_bits: int | None, keep: Collection[str]
    ) -> None:
        self._state, self._bias_bits, self._keep = state, bias_bits, frozenset(keep)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor."""
        one = {name: self._state[name]}
        return snapped_state(one, bias_bits=self._bias_bits, keep=self._keep)[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._state)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._state)
