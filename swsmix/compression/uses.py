"""Which weights a network uses, how, in which order, and what their inputs are like."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swsmix.compression.feeding import call
from swsmix.compression.hessians import Moments, Place, Use, Watch, evaluating

_MOST_ROWS = 1 << 17  # of inputs that H is made of, or 32 times the fan-in


class Part(NamedTuple):
    """Outputs of a layer that see the same inputs.

    Attributes:
        rows: the first output and one past the last.
        transposed: the outputs are columns of the parameter.
        groups: of a convolution.
    """

    rows: tuple[int, int]
    transposed: bool
    groups: int


@dataclasses.dataclass
class Layer:
    """A weight and how it is used.

    Attributes:
        name: of the parameter.
        parts: what sees the same inputs, with the largest number of rows of inputs.
        bias: the one thing that is added to the outputs of each part, None if there is no such.
        times: how often it is used for each batch.
        tokens: it is an embedding.
        products: it is multiplied.
        note: why its errors are not compensated; empty if they are.
    """

    name: str
    parts: dict[Part, int] = dataclasses.field(default_factory=dict)
    bias: dict[Part, Place | None] = dataclasses.field(default_factory=dict)
    times: dict[int, int] = dataclasses.field(default_factory=dict)
    tokens: bool = False
    products: bool = False
    note: str = ""

    @property
    def rows(self) -> int:
        """The fewest rows of inputs that a part of it sees."""
        return min(self.parts.values(), default=0)

    @property
    def transposed(self) -> bool:
        """The columns of the parameter are its outputs."""
        return any(part.transposed for part in self.parts)


class _Enough(BaseException):
    """The last use of a weight was seen; the rest of the network need not run."""


def scout(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Sequence[Any]
) -> dict[str, Layer]:
    """How each weight is used, in the order of the first uses.

    Args:
        model: the network.
        weights: those to be quantised.
        batches: all of them.
    """
    parameters = dict(model.named_parameters())
    layers: dict[str, Layer] = {}
    biases: dict[Place, set[str]] = {}
    number = 0

    def see(use: Use) -> None:
        if use.bias is not None:
            biases.setdefault(use.bias, set()).add(f"{use.name}{use.rows}")
        if use.name not in weights:
            biases.setdefault(Place(use.name, 0), set()).add("?")
            return
        layer = layers.setdefault(use.name, Layer(use.name))
        layer.times[number] = layer.times.get(number, 0) + 1
        if use.kind == "embedding":
            layer.tokens = True
        elif use.kind in ("matrix", "convolution"):
            layer.products = True
        else:
            layer.note = f"used by {use.kind}"
        part = Part(use.rows, use.transposed, use.groups)
        if part not in layer.parts:
            layer.bias[part] = use.bias
        elif layer.bias[part] != use.bias:
            layer.bias[part] = None
        layer.parts[part] = layer.parts.get(part, 0) + use.number

    with evaluating(model):
        for batch in batches:
            with Watch(parameters, see):
                call(model, batch)
            number += 1
    odd = {place.name for place, users in biases.items() if "?" in users}
    for layer in layers.values():
        for part, bias in layer.bias.items():
            if bias is not None and (bias.name in odd or len(biases[bias]) > 1):
                layer.bias[part] = None
        _check(layer, weights[layer.name])
    for name in weights:
        if name not in layers:
            layers[name] = Layer(name, note="no use of it was seen")
    return layers


def _check(layer: Layer, weight: Tensor) -> None:
    """Note what stands against compensation."""
    if layer.note:
        return
    if layer.tokens:
        if layer.products:
            layer.note = "an embedding and a product share it"
        return
    ends = sorted(p.rows for p in layer.parts)
    apart = all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
    if not apart or len({p.transposed for p in layer.parts}) > 1:
        layer.note = "its uses overlap in part"


def moments(
    model: nn.Module,
    layer: Layer,
    weights: Mapping[str, Tensor],
    batches: Sequence[Any],
    first: int,
) -> dict[Part, Moments]:
    """The moments of what each part of a layer sees, with the weights as they are now.

    Args:
        model: the network.
        layer: one of its layers.
        weights: holds the layer's weight.
        batches: inputs.
        first: the number that the first of them had for `scout`.
    """
    found = {part: Moments() for part in layer.parts}
    # TorchScript raises an error of its own in the place of another's.
    scripted = isinstance(model, torch.jit.ScriptModule)
    ends: tuple[type[BaseException], ...] = (_Enough, RuntimeError) if scripted else (_Enough,)
    left = 0
    weight = weights[layer.name]

    def see(use: Use) -> None:
        nonlocal left
        part = Part(use.rows, use.transposed, use.groups)
        if part in found and use.kind in ("matrix", "convolution"):
            fan_in = weight[0].numel()
            most = max(_MOST_ROWS, 32 * fan_in)
            found[part].add_(use.inputs(-(-layer.parts[part] // most)))
        left -= 1
        if left == 0:
            raise _Enough

    with evaluating(model):
        for number, batch in enumerate(batches, first):
            left = layer.times.get(number, 0)
            if left:
                with contextlib.suppress(*ends), Watch({layer.name: weight}, see):
                    call(model, batch)
    return found


def token_counts(
    model: nn.Module,
    layer: Layer,
    weights: Mapping[str, Tensor],
    batches: Sequence[Any],
) -> Float[Tensor, " v"]:
    """How often each row of an embedding is looked up.

    Args:
        model: the network.
        layer: one of its embeddings.
        weights: holds its weight.
        batches: inputs.
    """
    weight = weights[layer.name]
    count = torch.zeros(len(weight), dtype=torch.float32, device=weight.device)

    def see(use: Use) -> None:
        tokens = use.inputs(1)
        count.index_add_(0, tokens, torch.ones_like(tokens, dtype=torch.float32))

    with evaluating(model), Watch({layer.name: weight}, see):
        for batch in batches:
            call(model, batch)
    return count
