"""What a network's weights multiply: their inputs' second moments, seen below the modules.

Modules' hooks miss functional calls, tied weights and the projections of attention. Every product
passes torch's dispatcher, where a weight is known by its memory, whole or as rows of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from swsmix.compression.feeding import tensors
from swsmix.compression.unfolding import convolution_rows, thinned

_aten = torch.ops.aten
# Of these, only the shape, the dtype or the device of a weight is read.
_SHAPE_ONLY = {
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    *("zeros_like", "ones_like", "empty_like", "full_like"),
}
_KINDS = {"matrix", "convolution", "embedding"}  # of uses that are understood
_ROUNDING = 1e-6  # of a mean square: where inputs are constant, all directions are worth as little


class Place(NamedTuple):
    """Where a tensor lies: the parameter and the first of its numbers."""

    name: str
    start: int


class Use(NamedTuple):
    """One use of a weight.

    Attributes:
        name: the parameter's name.
        kind: "matrix", "convolution" or "embedding"; otherwise the name of an operation of which
            nothing more is known.
        rows: the outputs that it makes, first and one past the last, of all by default.
        transposed: the columns of the parameter are its outputs.
        groups: of a convolution.
        bias: what is added to the outputs.
        number: how many rows of inputs there are.
        inputs: gives at most so many of them, as (groups, rows, fan-in); token numbers (rows,) of
            an embedding.
    """

    name: str
    kind: str
    rows: tuple[int, int] = (0, 0)
    transposed: bool = False
    groups: int = 1
    bias: Place | None = None
    number: int = 0
    inputs: Callable[[int], Tensor] = lambda stride: torch.empty(
        0, dtype=torch.float32, device="cpu"
    )


class Watch(TorchDispatchMode):
    """Reports every use of a weight while it is entered.

    Args:
        weights: name -> parameter; those of biases too.
        see: is called with each use, before it is computed.
    """

    def __init__(self, weights: Mapping[str, Tensor], see: Callable[[Use], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights, self.see = weights, see
        self._memory: dict[int, list[tuple[int, int, str]]] = {}
        for name, w in weights.items():
            if w.numel():
                first = int(w.storage_offset())
                span = first, first + w.numel(), name
                self._memory.setdefault(_address(w), []).append(span)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Report the uses of `func`, and compute it."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        places = [p for a in tensors((args, kwargs)) if (p := self.place(a)) is not None]
        if places:
            uses = self._uses(name, args)
            if uses is None and func._can_decompose() and not func.is_view:
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            if uses is None and not func.is_view and name not in _SHAPE_ONLY:
                uses = [Use(p.name, _unknown(name, args)) for p in places]
            for use in uses or ():
                self.see(use)
        return func(*args, **kwargs)

    def place(self, t: Any) -> Place | None:
        """The parameter in whose memory a tensor lies."""
        if not isinstance(t, Tensor) or t.layout != torch.strided or not t.numel():
            return None
        for first, last, name in self._memory.get(_address(t), ()):
            if first <= t.storage_offset() < last:
                return Place(name, int(t.storage_offset()) - first)
        return None

    def _uses(self, name: str, args: Any) -> list[Use] | None:
        """The uses that are understood; None if they are not."""
        match name, args:
            case "mm", (x, m):
                return self._products(x, m, None)
            case "addmm", (bias, x, m):
                return self._products(x, m, bias)
            case "linear", (x, w, *rest):
                return self._product(x, w.t(), rest[0] if rest else None)
            case "bmm", (x, m) if m.shape[0] == 1 or m.stride(0) == 0:
                return self._products(x.reshape(-1, x.shape[-1]), m[0], None)
            case "embedding" | "_embedding_bag" | "_embedding_bag_forward_only", (w, tokens, *_):
                return self._looked_up(w, tokens)
            case ("index", (w, [tokens])) | ("index_select", (w, 0, tokens)):
                return self._looked_up(w, tokens)
            case "convolution", (x, w, bias, *how) if self._whole(w) and not how[3]:
                count, rows = convolution_rows(x, w.shape[2:], how[0], how[1], how[2], how[5])
                found = Use(self._name(w), "convolution", (0, len(w)), groups=how[5])
                return [found._replace(bias=self._bias(bias), number=count, inputs=rows)]
        return None

    def _looked_up(self, w: Tensor, tokens: Tensor) -> list[Use] | None:
        """The use of rows of a table."""
        if not self._whole(w) or w.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
            return None
        use = Use(self._name(w), "embedding", (0, len(w)), number=tokens.numel())
        return [use._replace(inputs=lambda stride: tokens.reshape(-1)[::stride])]

    def _products(self, x: Tensor, m: Tensor, bias: Tensor | None) -> list[Use] | None:
        """The use of x @ m + bias, of which one factor is a weight."""
        if self.place(m) is None:
            return None if bias is None and self.place(x) is None else self._product(m.T, x.T, None)
        return None if self.place(x) is not None else self._product(x, m, bias)

    def _product(self, x: Tensor, m: Tensor, bias: Tensor | None) -> list[Use] | None:
        place = self.place(m)
        if place is None:
            return None
        w = self.weights[place.name]
        if w.ndim < 2 or not w.is_contiguous():
            return None
        width = w[0].numel()
        x = x.reshape(-1, x.shape[-1])
        if m.stride() == (1, width) and m.shape[0] == width and place.start % width == 0:
            first = place.start // width
            rows, transposed = (first, first + m.shape[1]), False
        elif m.stride() == (width, 1) and place.start == 0 and m.shape == (len(w), width):
            rows, transposed = (0, width), True
        else:
            return None
        found = Use(place.name, "matrix", rows, transposed, bias=self._bias(bias), number=len(x))
        return [found._replace(inputs=lambda stride: thinned(x, stride)[None])]

    def _bias(self, bias: Tensor | None) -> Place | None:
        return None if bias is None or bias.ndim != 1 else self.place(bias)

    def _whole(self, w: Tensor) -> bool:
        place = self.place(w)
        return place is not None and place.start == 0 and w.shape == self.weights[place.name].shape

    def _name(self, w: Tensor) -> str:
        place = self.place(w)
        assert place is not None
        return place.name


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or fused layers; every module's own mode comes back.

    Attention and recurrent layers run step by step: their fused forms hide the products.
    """
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if any(isinstance(module, nn.RNNBase) for module in modes):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                stack.enter_context(_without_mkldnn())
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _without_mkldnn() -> Iterator[None]:
    """As `torch.backends.mkldnn.flags`, which warns where the other flags cannot be set."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


class Moments:
    """Sums over the inputs of some outputs of a layer, from which H and E[x] follow.

    They are taken around the mean of the first rows: a variance much smaller than the mean would
    be lost in float32.

    Attributes:
        count: rows of inputs.
    """

    def __init__(self) -> None:
        self.count = 0
        self._around: Float[Tensor, "g n"] | None = None
        self._total: Float[Tensor, "g n"] | None = None
        self._square: Float[Tensor, "g n n"] | None = None

    def add_(self, x: Float[Tensor, "g r n"]) -> None:
        """Count more rows."""
        if not x.shape[1]:
            return
        x = x if x.dtype == torch.float64 else x.float()
        if self._around is None:
            self._around = x.mean(1)
        x = x - self._around[:, None]
        total, square = x.sum(1), x.mT @ x
        if self._total is None or self._square is None:
            home = total.device if total.device.type != "mps" else torch.device("cpu")
            self._total = torch.zeros_like(total, dtype=torch.float64, device=home)
            self._square = torch.zeros_like(square, dtype=torch.float64, device=home)
        self._total += total.to(self._total)
        self._square += square.to(self._square)
        self.count += x.shape[1]

    def hessian(self, group: int, mean: Float[Tensor, " n"] | None = None) -> Float[Tensor, "n n"]:
        """E[(x - mean) (x - mean)^T], around 0 by default.

        A trace of the mean's square on the diagonal stands for the rounding of the inputs.
        """
        assert self._square is not None and self._total is not None and self._around is not None
        own = self._total[group] / self.count
        shift = self._around[group].to(own)
        trace = _ROUNDING * (shift + own).square().mean()
        shift = shift if mean is None else shift - mean
        cross = torch.outer(own, shift)
        h = self._square[group] / self.count + cross + cross.T + torch.outer(shift, shift)
        h.diagonal().add_(trace)
        return h

    def mean(self, group: int) -> Float[Tensor, " n"]:
        """E[x]."""
        assert self._total is not None and self._around is not None
        own = self._total[group] / self.count
        return self._around[group].to(own) + own


def _unknown(name: str, args: Any) -> str:
    """An operation of which nothing more is known, in words."""
    if name == "convolution" and len(args) > 6 and args[6]:
        return "transposed convolution"
    return f"an unusual {name}" if name in _KINDS else name


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
