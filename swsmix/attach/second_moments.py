"""Posterior variances from Adam's second moments.

Adam averages the squares of the batch gradients of the mean loss, v. Near an optimum they scatter
about 0 with the Fisher information over the batch size B, so that the data give a weight the
precision num_data * B * v_i, and

    s_i^2 = 1 / (num_data * B * v_i + tau sum_j gamma_ij / sigma_j^2).

These are variances given all other weights, hence smaller than the marginal ones. Clipped gradients
and a far optimum bias them too: they are an estimate of the right size, no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix import _shards
from swsmix.attach import proximal
from swsmix.em import variational

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

_OTHERWISE = (
    "; use moments='maximum', or give prior.em_step_(variance=...) the variances yourself, for "
    "instance of swsmix.bayes.laplace"
)


def check(
    optimizers: Sequence[Optimizer],
    num_data: int,
    batch_size: int | None,
    update: str,
    tau: float,
) -> int:
    """The batch size, if the optimisers' second moments are an estimate of the variances.

    Raises:
        ValueError: if they are not.
    """
    for optimizer in optimizers:
        wrong = None
        if not proximal.is_adam(optimizer):
            wrong = f"the second moments of Adam or AdamW; got {type(optimizer).__name__}"
        elif any(group["amsgrad"] for group in optimizer.param_groups):
            wrong = "second moments that average; amsgrad=True keeps their maximum"
        elif any(
            group["weight_decay"] and not _is_decoupled(optimizer, group)
            for group in optimizer.param_groups
        ):
            wrong = "the data's gradients alone; weight_decay of Adam is among them (take AdamW)"
        if wrong:
            raise ValueError(f"moments='posterior' needs {wrong}{_OTHERWISE}")
    if update != "proximal":
        raise ValueError(
            "moments='posterior' needs update='proximal': with update='gradient' Adam's second "
            "moments hold the prior's gradient too"
        )
    if batch_size is None or batch_size < 1:
        raise ValueError(
            "moments='posterior' needs batch_size, the number of examples over which each step's "
            f"loss is a mean; got {batch_size}"
        )
    if batch_size >= num_data:
        raise ValueError(
            "moments='posterior' needs batches: the gradient of a full batch does not scatter, and "
            f"its square says nothing of the curvature; got batch_size={batch_size} of "
            f"num_data={num_data}. Small networks: fit(..., optimizer='l-bfgs')"
        )
    if not tau > 0.0:
        raise ValueError(f"moments='posterior' needs a prior with tau > 0; got {tau}")
    return batch_size


def _is_decoupled(optimizer: Optimizer, group: dict[str, object]) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))


@torch.no_grad()
def variance(
    prior: MixturePrior,
    members: Iterable[tuple[Optimizer, str, nn.Parameter, str]],
    scale: float,
    tau: float,
) -> dict[str, Tensor]:
    """s^2 of each tensor of a prior, by name.

    Args:
        prior: the prior.
        members: optimiser, name, parameter and group of the prior's tensors.
        scale: num_data times the batch size.
        tau: the strength of the prior.
    """
    found = {}
    for optimizer, name, p, group in members:
        w, state = _shards.local(p.detach()), optimizer.state.get(p, {})
        data = torch.zeros_like(w, dtype=torch.float64)
        if "exp_avg_sq" in state:  # else no gradient has come yet, and the prior alone speaks
            settings = next(g for g in optimizer.param_groups if any(p is q for q in g["params"]))
            correction = 1.0 - float(settings["betas"][1]) ** float(state["step"])
            data += scale / correction * _shards.local(state["exp_avg_sq"]).double()
        strength = tau * prior.tau[group]
        s2 = variational.variance_of(
            prior.mixtures[group], w.reshape(-1), data.reshape(-1), strength
        )
        found[name] = s2.reshape(w.shape)
    return found
