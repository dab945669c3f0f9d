"""One weight after the other, quantised on the inputs that it gets by then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix.compression import entropy_constrained
from swsmix.compression.compensation import compensate, entropy, factor, refitted
from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.hessians import Moments, Place
from swsmix.compression.uses import Layer, Part

_PASSES = 4  # at most, over a layer's columns, the values fitted again in between


class Done(NamedTuple):
    """A quantised weight.

    Attributes:
        name: of the parameter.
        way: "compensated", "plain" or "by token frequency".
        weights: how many.
        values: how many different ones it takes.
        bits: the order-0 entropy per weight.
        plain_error: the relative error of its outputs on held-out inputs without compensation.
        error: the same as it is; nan where the inputs are not seen.
        rows: of inputs that H was made of.
        note: why it is not compensated.
    """

    name: str
    way: str
    weights: int
    values: int
    bits: float
    plain_error: float
    error: float
    rows: int
    note: str


class Chosen(NamedTuple):
    """A value for each weight.

    Attributes:
        book: the values.
        which: of them (m, n).
        values: the weights quantised (m, n).
    """

    book: Codebook
    which: Int[Tensor, "m n"]
    values: Float[Tensor, "m n"]


class Piece(NamedTuple):
    """Outputs of a layer with one H.

    Attributes:
        rows: the outputs.
        hessian: H, centred where there is a bias to correct.
        held: the same of the held-out inputs, around the mean of the others.
        mean: of the inputs.
        bias: what is added to the first of the outputs.
    """

    rows: slice
    hessian: Float[Tensor, "n n"]
    held: Float[Tensor, "n n"]
    mean: Float[Tensor, " n"]
    bias: Place | None

    def error(self, change: Float[Tensor, "m n"]) -> float:
        """The squared change of these outputs on held-out inputs, for a change of the weights."""
        d = change[self.rows].to(self.held)
        return float(((d @ self.held) * d).sum().item())


def pieces_of(
    layer: Layer, used: Mapping[Part, Moments], held: Mapping[Part, Moments]
) -> list[Piece]:
    """The outputs of a layer with one H each: a part's, or those of a group of channels."""
    pieces = []
    for part, seen in used.items():
        if not seen.count:
            continue
        size = (part.rows[1] - part.rows[0]) // part.groups
        test = held[part] if held[part].count else seen
        bias = layer.bias[part]
        for group in range(part.groups):
            start = group * size
            mean = seen.mean(group)
            around = None if bias is None else mean
            own = None if bias is None else Place(bias.name, bias.start + start)
            rows = slice(part.rows[0] + start, part.rows[0] + start + size)
            pieces.append(
                Piece(rows, seen.hessian(group, around), test.hessian(group, around), mean, own)
            )
    return pieces


def plain(weight: Float[Tensor, "m n"], lam: float) -> Chosen:
    """The values of entropy-constrained quantisation, rounded to the weight's dtype."""
    cells = entropy_constrained.histogram([weight.reshape(-1)])
    return chosen(weight, rounded(entropy_constrained.fit(cells, lam, zero=True), weight.dtype))


def chosen(weight: Float[Tensor, "m n"], book: Codebook) -> Chosen:
    """The value of each weight without regard to its inputs."""
    index = book.assign(weight).to(weight.device)
    return Chosen(book, index, _values(book, index, weight))


def by_frequency(weight: Float[Tensor, "v n"], lam: float, count: Float[Tensor, " v"]) -> Chosen:
    """The values of an embedding: tokens that are more common get more bits.

    A token weighs half of its frequency and half as if all were equally common, rounded to a
    power of 2, so that those that the inputs happen not to hold keep their meaning.
    """
    start = plain(weight, lam)
    level = (0.5 + 0.5 * count / count.mean().clamp_min(1e-30)).log2().round()
    index = start.which
    for value in level.unique().tolist():
        rows = level == value
        book = start.book._replace(lam=lam / 2.0**value)
        index[rows] = book.assign(weight[rows]).to(weight.device)
    book = rounded(refitted(start.book, index, weight), weight.dtype)
    if len(book.values) != len(start.book.values):  # some went unused
        book, index = start.book, index
    return Chosen(book, index, _values(book, index, weight))


def compensated(
    weight: Float[Tensor, "m n"],
    pieces: list[Piece],
    book: Codebook,
    damping: float,
    passes: int = _PASSES,
) -> Chosen:
    """The values with each one's error made good by the others; several passes fit the values.

    A pass goes through the columns once and does not look back, so that with values fitted to the
    pass before it the cost, output error + lambda * bits, may as well rise as fall: from there on
    the passes go round and round. The first one that gains nothing ends them and is dropped.
    """
    unit = unit_of(pieces)
    factors = [factor(piece.hessian, damping, unit) for piece in pieces]
    best, least = None, math.inf
    for _ in range(passes):
        index, moved = torch.zeros_like(weight, dtype=torch.int64), torch.zeros_like(weight)
        for piece, by in zip(pieces, factors, strict=True):
            index[piece.rows], moved[piece.rows] = compensate(weight[piece.rows], by, book)
        now = Chosen(book, index, _values(book, index, weight))
        cost = sum(
            by.error((weight - now.values)[piece.rows])
            for piece, by in zip(pieces, factors, strict=True)
        )
        cost += book.lam * entropy(index) * index.numel()
        if best is not None and not cost < least:
            break
        best, least = now, cost
        book = rounded(refitted(book, index, moved), weight.dtype)
    assert best is not None
    return best


def unit_of(pieces: list[Piece]) -> float:
    """The mean diagonal of H over a layer's weights."""
    rows = [piece.rows.stop - piece.rows.start for piece in pieces]
    means = [float(piece.hessian.diagonal().mean()) for piece in pieces]
    return float(sum(r * m for r, m in zip(rows, means, strict=True)) / sum(rows))


def quantise_(
    parameters: Mapping[str, Tensor],
    layer: Layer,
    pieces: list[Piece],
    lam: float,
    damping: float,
) -> tuple[Done, Chosen]:
    """Quantise one weight in place, and correct the bias for the mean of its inputs.

    Of plain and compensated, the one of the smaller error + lambda * bits on held-out inputs.

    Args:
        parameters: name -> parameter: the weight, and the bias.
        layer: the weight's uses.
        pieces: its outputs with their moments; none if they are not known.
        lam: lambda, in squared units of the weight.
        damping: of H, in units of its mean diagonal.
    """
    w = matrix(parameters[layer.name].detach(), layer.transposed)
    alone = plain(w, lam)
    if not pieces:
        return put_(parameters, layer, alone, [], "plain"), alone
    other = compensated(w, pieces, alone.book, damping)
    power = sum(piece.error(w) for piece in pieces) or 1.0
    errors = [sum(p.error(w - c.values) for p in pieces) / power for c in (alone, other)]
    price = lam * unit_of(pieces) * w.numel() / power
    costs = [e + price * entropy(c.which) for e, c in zip(errors, (alone, other), strict=True)]
    way, best = ("plain", alone) if costs[0] < costs[1] else ("compensated", other)
    done = put_(parameters, layer, best, pieces, way)
    error = errors[0] if way == "plain" else errors[1]
    return done._replace(plain_error=errors[0], error=error), best


def put_(
    parameters: Mapping[str, Tensor], layer: Layer, best: Chosen, pieces: list[Piece], way: str
) -> Done:
    """Write the values into a weight, and what they change on average into its bias."""
    weight = parameters[layer.name].detach()
    w = matrix(weight, layer.transposed)
    for piece in pieces:
        if piece.bias is not None:
            change = (w[piece.rows] - best.values[piece.rows]).to(piece.mean) @ piece.mean
            bias = parameters[piece.bias.name].detach()
            bias[piece.bias.start : piece.bias.start + len(change)] += change.to(bias)
    new = best.values.mT if layer.transposed else best.values
    weight.copy_(new.reshape(weight.shape))
    used = len(best.which.unique())
    return Done(
        layer.name, way, weight.numel(), used, entropy(best.which), math.nan, math.nan,
        layer.rows, layer.note,
    )  # fmt: skip


def matrix(weight: Tensor, transposed: bool) -> Float[Tensor, "m n"]:
    """A weight with one output per row."""
    flat = weight.reshape(len(weight), -1)
    return flat.mT.contiguous() if transposed else flat


def rounded(book: Codebook, dtype: torch.dtype) -> Codebook:
    """The values as the weight's dtype holds them; those that become equal are one."""
    values, at = book.values.to(dtype).double().unique(return_inverse=True)
    share = torch.zeros_like(values).index_add_(0, at, torch.exp2(-book.bits))
    return Codebook(values, -torch.log2(share), book.lam)


def _values(book: Codebook, index: Tensor, like: Tensor) -> Tensor:
    return book.values.to(like)[index]
