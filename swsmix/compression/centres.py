"""After snapping: the centres fitted to the data while each weight keeps its component.

The gradient of a centre is the sum of those of its weights (Han, Mao & Dally 2016, section 3).
`tie` makes any training loop fit centres; `refine_` is a loop of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from swsmix.compression.snap import Quantized


def centre_sums(index: Tensor, values: Tensor) -> Tensor:
    """Sums over the weights of each centre.

    Args:
        index: the centre of each weight.
        values: one number per weight, such as its gradient.

    Returns:
        One sum per centre, up to the last centre that occurs.

    Example:
        >>> centre_sums(torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0]))
        tensor([1., 5.])
    """
    total = values.new_zeros(int(index.max()) + 1)
    return total.index_add_(0, index.reshape(-1), values.reshape(-1))


def tie(parameter: Tensor, index: Tensor, *, fixed: int | None = 0) -> RemovableHandle:
    """Give each weight its centre's gradient, so that weights of one value keep one value.

    An optimiser that treats all weights alike (SGD, Adam) then moves the centres.

    Args:
        parameter: a snapped tensor.
        index: the centre of each weight.
        fixed: a centre that stays, such as that of the pruned weights; None fixes none.

    Returns:
        A handle; `remove()` unties the weights.

    Example:
        >>> w = torch.tensor([0.0, 0.5, 0.5], requires_grad=True)
        >>> handle = tie(w, torch.tensor([0, 1, 1]))
        >>> (w * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        >>> w.grad
        tensor([0., 5., 5.])
    """

    def summed(gradient: Tensor) -> Tensor:
        sums = centre_sums(index, gradient)
        if fixed is not None and fixed < len(sums):
            sums[fixed] = 0.0
        return sums[index]

    handle: RemovableHandle = parameter.register_hook(summed)
    return handle


def refine_(
    model: nn.Module,
    quantized: Mapping[str, Quantized],
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lr: float = 1e-3,
    others: bool = True,
    keep: float | None = 0.0,
) -> dict[str, Quantized]:
    """Fit the centres of snapped tensors by gradient, their assignments fixed, in place.

    Adam takes one step per batch.

    Args:
        model: the network; its tensors are set to the refined values. Those that take no
            gradient keep their centres.
        quantized: name -> codebook and index, from `quantize`; shared codebooks stay shared.
        loss: `loss(model(inputs), targets)`, a mean over the batch.
        batches: pairs of inputs and targets, each used once; repeat them for several epochs.
        lr: Adam's learning rate.
        others: also train the parameters that are not quantised (biases, norms).
        keep: centres of this value stay, so that pruned weights stay pruned; None fixes none.

    Returns:
        name -> the refined codebook with the same index.

    Raises:
        KeyError: if the model has no parameter of a name.

    Example:
        >>> from swsmix import MixturePrior
        >>> from swsmix.compression.snap import quantize
        >>> net, x = nn.Linear(4, 3), torch.randn(8, 4)
        >>> quantized = quantize(MixturePrior(net, 3))
        >>> refined = refine_(net, quantized, nn.functional.mse_loss, [(x, x[:, :3])] * 10)
        >>> torch.equal(net.weight, refined["weight"].values)
        True
    """
    parameters = dict(model.named_parameters())
    missing = [name for name in quantized if name not in parameters]
    if missing:
        raise KeyError(f"the model has no parameters {missing}; it has {list(parameters)}")
    codebooks = {id(q.codebook): q.codebook.detach().clone() for q in quantized.values()}
    snapped = {n: parameters[n] for n in quantized}
    free = [p for n, p in parameters.items() if n not in quantized and p.requires_grad]
    optimizer = torch.optim.Adam([*codebooks.values(), *(free if others else ())], lr=lr)
    _copy_(snapped, quantized)
    for inputs, targets in batches:
        model.zero_grad()
        loss(model(inputs), targets).backward()
        for key, codebook in codebooks.items():
            codebook.grad = torch.zeros_like(codebook)
            for name, q in quantized.items():
                gradient = parameters[name].grad
                if id(q.codebook) == key and gradient is not None and q.index.numel():
                    sums = centre_sums(q.index, gradient).to(codebook.dtype)
                    codebook.grad[: len(sums)] += sums
            if keep is not None:
                codebook.grad[codebook == keep] = 0.0
        optimizer.step()
        fitted = {n: Quantized(codebooks[id(q.codebook)], q.index) for n, q in quantized.items()}
        _copy_(snapped, fitted)
    model.zero_grad()
    return {n: Quantized(codebooks[id(q.codebook)], q.index) for n, q in quantized.items()}


@torch.no_grad()
def _copy_(parameters: Mapping[str, Tensor], quantized: Mapping[str, Quantized]) -> None:
    for name, p in parameters.items():
        p.copy_(quantized[name].values)
