"""The proximal step: how a weight moves towards the centres, stable for every sigma.

After the optimiser's step on the data loss alone, the closed-form step on the EM majoriser of R,
which is quadratic in w:

    a_i = sum_j gamma_ij / sigma_j^2,   b_i = sum_j gamma_ij mu_j / sigma_j^2,
    w_i <- (w_i + eta_i t b_i) / (1 + eta_i t a_i),   t = tau / num_data

with gamma taken at the weights before the optimiser's step, and eta_i the optimiser's own
effective step for that weight. It has the fixed points of the explicit gradient:
w* = (w* - eta g + eta t b) / (1 + eta t a) says that g + t (a w* - b) = 0. (AdamW's decay, itself a
step outside the gradient, shifts the two a little differently.)

`Tables.proximal_` evaluates the formula in O(N); here are the optimiser's step size and the
batching of small tensors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from swsmix import _shards, tables
from swsmix.tables import Adaptive

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

Step = float | Adaptive


@torch.no_grad()
def step_(
    prior: MixturePrior,
    optimizer: Optimizer,
    held: Sequence[tuple[str, nn.Parameter, str]],
    before: Mapping[str, Tensor],
    strength: float,
    rounding: int | None = None,
) -> list[str]:
    """The proximal step on the tensors that an optimiser has just moved, in place.

    Args:
        prior: the prior.
        optimizer: one whose effective step is known.
        held: name, parameter and group of the prior's tensors in it.
        before: name -> the weights before the optimiser's step, of those that it has moved.
        strength: t = tau / num_data.
        rounding: a seed; with it weights in bfloat16 are rounded up or down by chance, to the
            exact value on average: a weak prior's moves would all be lost in rounding to nearest.

    Returns:
        The names of the tensors that stayed because their effective step is not known, or not
        finite.
    """
    formula = _EFFECTIVE_STEPS.get(_step_function(optimizer))
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parts: dict[str, list[tuple[Tensor, Tensor, Step]]] = {}
    rounded, unknown = [], []
    for name, p, group in held:
        if name not in before:
            continue
        w, old = _shards.local(p).detach(), before[name]
        step = _by_formula(formula, optimizer.state.get(p, {}), settings[id(p)])
        if step is None:
            unknown.append(name)
            continue
        if rounding is not None and w.dtype == torch.bfloat16:
            exact, old = w.float(), old.float()
            if isinstance(step, Adaptive):
                step = step._replace(second=step.second.float())
            rounded.append((w, exact))
            w = exact
        parts.setdefault(group, []).append((w, old, step))
    tables.proximal_each_([
        (prior.tables_of(group, wait=False), members, strength * prior.tau[group])
        for group, members in parts.items()
    ])  # fmt: skip
    generator = None
    for w, exact in rounded:
        generator = generator or torch.Generator(w.device).manual_seed(rounding or 0)
        w.copy_(_rounded_by_chance(exact, generator))
    return unknown


def _rounded_by_chance(exact: Tensor, generator: torch.Generator) -> Tensor:
    """Values in bfloat16 that are the given float32 ones on average."""
    bits = exact.contiguous().view(torch.int32)
    noise = torch.randint(
        1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator
    )
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def is_known(optimizer: Optimizer) -> bool:
    """Whether an optimiser's effective step is known: by its `step` function, not by its class.

    A subclass of Adam with a step of its own, or its own gradients within it, is not Adam.
    """
    return (
        _step_function(optimizer) in _EFFECTIVE_STEPS
        and _unwrapped(getattr(type(optimizer), "_init_group", None)) in _INIT_GROUPS
        and all(_has_finite_step(optimizer, settings) for settings in optimizer.param_groups)
    )


def is_adam(optimizer: Optimizer) -> bool:
    """Whether the optimiser's step is known and that of Adam or AdamW."""
    return is_known(optimizer) and _EFFECTIVE_STEPS[_step_function(optimizer)] is _adam


def effective_step(
    optimizer: Optimizer, state: Mapping[str, Any], settings: Mapping[str, Any]
) -> Step | None:
    """eta: how far the optimiser moves a weight for a constant unit gradient.

        SGD    lr (1 - dampening) / (1 - momentum)
        Adam   lr / (sqrt(v / correction) + eps)

    Args:
        optimizer: the optimiser.
        state: its state of the tensor.
        settings: the tensor's parameter group.

    Returns:
        The step; None where it is not known, or not finite (a momentum of 1).
    """
    return _by_formula(_EFFECTIVE_STEPS.get(_step_function(optimizer)), state, settings)


def _by_formula(
    formula: Callable[..., Step] | None, state: Mapping[str, Any], settings: Mapping[str, Any]
) -> Step | None:
    if formula is None:
        return None
    try:
        step = formula(state, settings)
    except (KeyError, ZeroDivisionError):
        return None
    numbers = step[1:] if isinstance(step, Adaptive) else (step,)
    return step if all(map(math.isfinite, numbers)) else None


def _sgd(_: Mapping[str, Any], settings: Mapping[str, Any]) -> Step:
    lr, momentum = float(settings["lr"]), float(settings["momentum"])
    return lr * (1.0 - float(settings["dampening"])) / (1.0 - momentum) if momentum else lr


def _adam(state: Mapping[str, Any], settings: Mapping[str, Any]) -> Step:
    second = state["max_exp_avg_sq" if settings["amsgrad"] else "exp_avg_sq"]
    # lr / (sqrt(v / correction) + eps), numerator and denominator times sqrt(correction)
    root = math.sqrt(1.0 - float(settings["betas"][1]) ** float(state["step"]))
    return Adaptive(_shards.local(second), float(settings["lr"]) * root, settings["eps"] * root)


def _step_function(optimizer: Optimizer) -> Callable[..., Any]:
    """The optimiser's own `step`, without what torch and its schedulers wrap around it."""
    step = _unwrapped(optimizer.step)
    function: Callable[..., Any] = getattr(step, "__func__", step)
    return function


def _unwrapped(function: Any) -> Any:
    """Without torch's wrappers, such as its compiler's; anyone else's may do more than call it."""
    return inspect.unwrap(function, stop=lambda f: not _is_torchs(f))


def _is_torchs(function: Any) -> bool:
    # Not `__module__`, which functools.wraps copies.
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__globals__", {}).get("__name__", "")).startswith("torch.")


def _has_finite_step(optimizer: Optimizer, settings: Mapping[str, Any]) -> bool:
    if _EFFECTIVE_STEPS[_step_function(optimizer)] is _sgd:
        return effective_step(optimizer, {}, settings) is not None
    return math.isfinite(float(settings["lr"]))


# AdamW's is Adam's, by inheritance, from torch 2.7 on; before that it has one of its own.
_INIT_GROUPS = tuple(_unwrapped(kind._init_group) for kind in (SGD, Adam, AdamW))
_EFFECTIVE_STEPS: dict[Callable[..., Any], Callable[..., Step]] = {
    inspect.unwrap(SGD.step): _sgd,
    inspect.unwrap(Adam.step): _adam,
    inspect.unwrap(AdamW.step): _adam,
}
