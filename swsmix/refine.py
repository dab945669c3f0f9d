"""After snapping: the centres fitted to the data while each weight keeps its component."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from swsmix.quantize import Quantized


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

    The gradient of a centre is the sum of those of its weights, as in Han, Mao & Dally 2016,
    section 3. Adam takes one step a batch.

    Args:
        model: the network; its tensors are set to the refined values.
        quantized: name -> codebook and index, from `quantize`; shared codebooks stay shared.
        loss: `loss(model(inputs), targets)`, a mean over the batch.
        batches: pairs of inputs and targets, each used once: repeat them for several epochs.
        lr: Adam's learning rate.
        others: also train the parameters that are not quantised (biases, norms).
        keep: a centre of this value stays, so that pruned weights stay pruned; None keeps none.

    Returns:
        name -> the refined codebook with the same index.

    Raises:
        KeyError: if the model has no parameter of a name.

    Example:
        >>> from swsmix import MixturePrior
        >>> from swsmix.quantize import quantize
        >>> net, x = nn.Linear(4, 3), torch.randn(8, 4)
        >>> found = quantize(MixturePrior(net, 3))
        >>> refined = refine_(net, found, nn.functional.mse_loss, [(x, x[:, :3])] * 10)
        >>> torch.equal(net.weight, refined["weight"].values)
        True
    """
    parameters = dict(model.named_parameters())
    missing = [name for name in quantized if name not in parameters]
    if missing:
        raise KeyError(f"the model has no parameters {missing}; it has {list(parameters)}")
    centres = {
        id(q.codebook): q.codebook.detach().clone().requires_grad_() for q in quantized.values()
    }
    fixed = {key: c.detach() == keep if keep is not None else None for key, c in centres.items()}
    free = {n: p for n, p in parameters.items() if n not in quantized and p.requires_grad}
    optimizer = torch.optim.Adam([*centres.values(), *(free.values() if others else ())], lr=lr)
    for inputs, targets in batches:
        optimizer.zero_grad()
        values = {
            name: centres[id(q.codebook)][q.index].to(parameters[name].dtype)
            for name, q in quantized.items()
        }
        loss(functional_call(model, values, (inputs,)), targets).backward()
        for key, centre in centres.items():
            if fixed[key] is not None and centre.grad is not None:
                centre.grad[fixed[key]] = 0.0
        optimizer.step()
    codebooks = {key: centre.detach() for key, centre in centres.items()}
    refined = {n: Quantized(codebooks[id(q.codebook)], q.index) for n, q in quantized.items()}
    with torch.no_grad():
        for name, q in refined.items():
            parameters[name].copy_(q.values)
    return refined
