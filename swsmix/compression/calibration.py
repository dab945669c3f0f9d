"""A network, its inputs, and what it answers to them with other weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swsmix._progress import watched
from swsmix.compression import entropy_constrained, layerwise
from swsmix.compression.entropy_constrained import Codebook, Histogram
from swsmix.compression.feeding import Output, call
from swsmix.compression.hessians import evaluating
from swsmix.compression.layerwise import Chosen, Done
from swsmix.compression.uses import Layer, moments, scout, token_counts

_REFERENCE = 0.1  # lambda in units of mean w^2, at which a tensor's price is measured
_POWER = 0.5  # of a price: between all alike, and all of the measured difference
_BATCHES = 16  # of inputs that it is measured on
_RANGE = 64.0  # prices are at most so much below, or a sixteenth of it above, their mean


class Answers(NamedTuple):
    """How near a network's answers are to those that it gave at first.

    Attributes:
        error: the squared difference in units of the first answers' squares.
        agreement: how often the largest output is the same one.
    """

    error: float
    agreement: float


class Attempt(NamedTuple):
    """The network quantised at one lambda.

    Attributes:
        lam: lambda, in squared units of the weights, before each tensor's price.
        layers: what became of each weight, in the order of use.
        books: name -> its values.
        bits: the order-0 entropy per weight.
        answers: on the held-out inputs.
    """

    lam: float
    layers: tuple[Done, ...]
    books: dict[str, Codebook]
    bits: float
    answers: Answers


@dataclasses.dataclass
class Calibration:
    """A network with what is needed to quantise it over and over.

    Attributes:
        model: the network; its weights change in place.
        weights: name -> the parameters to be quantised.
        used: batches to calibrate with.
        held: batches that decide.
        output: from the network's answer to the tensor that counts.
        damping: of H, in units of its mean diagonal.
        progress: show progress bars.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    used: Sequence[Any]
    held: Sequence[Any]
    output: Output
    damping: float
    progress: bool

    def __post_init__(self) -> None:
        """Run the network once to see how it uses its weights, and what it answers."""
        self.parameters = dict(self.model.named_parameters())
        self.given = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.cells: dict[str, Histogram] = {
            n: entropy_constrained.histogram([w.detach().reshape(-1)])
            for n, w in self.weights.items()
        }
        self.layers: dict[str, Layer] = scout(self.model, self.weights, [*self.used, *self.held])
        self.first = self.answers(self.held)
        if not all(bool(y.isfinite().all()) for y in self.first):
            raise ValueError(
                "the network's answers to the inputs hold nan or inf: needs inputs as it was "
                "trained on, and a network whose own answers are finite"
            )
        self.price = self._prices()

    def answers(self, batches: Sequence[Any]) -> list[Tensor]:
        """What the network answers now."""
        with evaluating(self.model):
            return [self.output(call(self.model, batch)).detach() for batch in batches]

    def compare(self, batches: Sequence[Any], first: Sequence[Tensor]) -> Answers:
        """What the network answers now, against what it answered at first."""
        change = power = same = count = 0.0
        for y, was in zip(self.answers(batches), first, strict=True):
            change += float((y.double() - was.double()).square().sum())
            power += float(was.double().square().sum())
            if was.ndim and was.shape[-1] > 1:
                same += float((y.argmax(-1) == was.argmax(-1)).sum())
                count += was[..., 0].numel()
        return Answers(change / (power or 1.0), same / count if count else math.nan)

    def restore_(self) -> None:
        """The weights and biases as they were given."""
        for name, t in self.given.items():
            self.parameters[name].detach().copy_(t)

    def quantise_(self, lam: float, *, compensating: bool) -> Attempt:
        """Quantise the network's given weights at one lambda, in the order of their use."""
        self.restore_()
        layers, books = [], {}
        label = f"lambda {lam:.3g}"
        for name, layer in watched(self.layers.items(), label, shown=self.progress):
            price = lam * self.price[name]
            if layer.tokens and not layer.note:
                count = token_counts(self.model, layer, self.weights, self.used)
                best = layerwise.by_frequency(self.weights[name].detach(), price, count)
                done = layerwise.put_(self.parameters, layer, best, [], "by token frequency")
            else:
                pieces = []
                if compensating and not layer.note:
                    seen = moments(self.model, layer, self.weights, self.used, 0)
                    test = moments(self.model, layer, self.weights, self.held, len(self.used))
                    pieces = layerwise.pieces_of(layer, seen, test)
                done, best = layerwise.quantise_(
                    self.parameters, layer, pieces, price, self.damping
                )
            layers.append(done)
            books[name] = best.book
        total = sum(done.weights for done in layers)
        bits = sum(done.weights * done.bits for done in layers) / total
        answers = self.compare(self.held, self.first)
        return Attempt(lam, tuple(layers), books, bits, answers)

    def plain_bits(self, lam: float) -> float:
        """The bits per weight of plain quantisation, from the histograms alone."""
        bits = total = 0.0
        for name, cells in self.cells.items():
            b = entropy_constrained.fit(cells, lam * self.price[name], zero=True).bits
            number = self.weights[name].numel()
            bits += number * float((torch.exp2(-b) * b).sum())
            total += number
        return bits / total

    def lambda_of(self, bits: float) -> float:
        """The lambda at which plain quantisation takes so many bits per weight, or fewer."""
        low, high = -30.0, 5.0
        while high - low > 0.01:
            x = (low + high) / 2.0
            low, high = (x, high) if self.plain_bits(math.exp(x)) > bits else (low, x)
        return math.exp(high)

    def _prices(self) -> dict[str, float]:
        """For each tensor, what a bit is worth in it, in squares of its weights.

            mean of w^2 * sqrt(relative error of the tensor / error that this alone makes)

        Measured by quantising it alone, since gradients see no further than their neighbourhood.
        Half of a difference is used (in logarithms, whose mean over the weights is 0): the values
        of small tensors cost bytes of their own.
        """
        batches = list(self.used)[:_BATCHES]
        first = self.answers(batches)
        square = {n: float(self.given[n].double().square().mean()) for n in self.weights}
        price: dict[str, float] = {}
        for name, w in watched(self.weights.items(), "sensitivity", shown=self.progress):
            given = self.given[name]
            if square[name] == 0.0:
                continue
            lam = _REFERENCE * square[name]
            values: Chosen = layerwise.plain(layerwise.matrix(given, False), lam)
            new = values.values.reshape(w.shape)
            w.detach().copy_(new)
            error = self.compare(batches, first).error
            w.detach().copy_(given)
            if error > 0.0:
                change = float((new.double() - given.double()).square().sum())
                price[name] = change / square[name] / error
        total = sum(self.weights[n].numel() for n in price) or 1
        logs = {n: _POWER * math.log(p) for n, p in price.items() if p > 0.0}
        mean = sum(self.weights[n].numel() * x for n, x in logs.items()) / total
        low, high = -math.log(_RANGE), math.log(_RANGE / 16.0)
        return {
            n: (square[n] or 1.0) * math.exp(min(max(logs.get(n, mean) - mean, low), high))
            for n in self.weights
        }
