"""Variational inference: a Pyro guide fitted to the joint density by mini-batches."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from swsmix._progress import watched
from swsmix.bayes import checks
from swsmix.bayes.joint import Joint
from swsmix.bayes.posterior import Posterior

Guide = Literal["normal", "low-rank", "delta"]


def fit_guide(
    joint: Joint,
    *,
    epochs: int = 100,
    batch_size: int = 256,
    lr: float = 1e-3,
    guide: Guide | str = "normal",
    init_scale: float = 0.01,
    kl_warmup: float = 0.3,
    mixture_every: int = 10,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Posterior:
    """Approximate the posterior by a Pyro autoguide and draw from it.

        maximise  E_q log p(data | w) - beta KL(q(w, phi) | p(w, phi))

    with one reparametrised sample a batch. beta rises linearly from 0.01 to 1 over the first
    `kl_warmup` of the steps, so that the data speak before the prior prunes (as in Sparse VD and
    VNQ). The guide starts at the MAP fit. Interrupted (KeyboardInterrupt), the guide as it is then
    is drawn from, with a warning. A variational posterior is narrower than the true one, and
    it keeps to one mode.

    Args:
        joint: the model; the guide lives on its network's device, in its dtype.
        epochs: passes over the data.
        batch_size: cases a step; small ones pay Pyro's fixed cost of a step more often.
        lr: of Adam.
        guide: `"normal"` (mean field), `"low-rank"` (a multivariate normal of low rank) or
            `"delta"` (a point: MAP over all sites at once).
        init_scale: the guide's first std, in the sampler's coordinates.
        kl_warmup: the share of the steps over which beta rises.
        mixture_every: steps between two moves of the mixtures' part of the guide; in between one
            draw of them is held, whose tables then serve all these steps. 1 for small networks.
        draws: to take from the guide at the end.
        seed: of batches and noise; the global random state is left alone.
        progress: show a progress bar.

    Returns:
        The posterior, one chain; `about["elbo"]` holds the ELBO of each epoch, under its beta, in
        nats a case.

    Raises:
        ValueError: for settings out of range.
        FloatingPointError: if the ELBO is no longer finite.
    """
    for name, value in (
        ("epochs", epochs), ("batch_size", batch_size), ("draws", draws),
        ("mixture_every", mixture_every),
    ):  # fmt: skip
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if not lr > 0.0 or not init_scale > 0.0 or not 0.0 <= kl_warmup <= 1.0:
        raise ValueError(
            "lr and init_scale must be positive and kl_warmup lie in [0, 1]; got "
            f"{lr}, {init_scale}, {kl_warmup}"
        )
    checks.warn_if_untrained(joint.prior, "the guide starts from noise and has to find")
    import pyro

    from swsmix.bayes.program import z_of

    x, y = joint.x, joint.y
    steps = -(-len(x) // batch_size)
    elbo, began = [], time.monotonic()
    device = x.device
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
    ):
        torch.manual_seed(seed)
        step, fitted = trainer(
            joint, guide=guide, init_scale=init_scale, lr=lr, mixture_every=mixture_every
        )
        try:
            for epoch in watched(range(epochs), "SVI", shown=progress):
                order, losses = torch.randperm(len(x), device=device), []
                for number in range(steps):
                    done = (epoch * steps + number) / (epochs * steps)
                    beta = min(1.0, max(0.01, done / kl_warmup)) if kl_warmup else 1.0
                    batch = order[number * batch_size : (number + 1) * batch_size]
                    loss = step(x[batch], y[batch], beta)
                    if loss is not None:
                        losses.append(loss / len(x))
                if not all(map(math.isfinite, losses)):
                    raise FloatingPointError(
                        f"the ELBO is not finite in epoch {epoch + 1}: lower lr, or give the "
                        "hyper-prior a larger std or std_count"
                    )
                elbo += [-sum(losses) / len(losses)] if losses else []
        except KeyboardInterrupt:
            warnings.warn(
                f"interrupted: the guide after {len(elbo)} of {epochs} epochs is drawn from",
                stacklevel=2,
            )
        with torch.no_grad():
            rows = [z_of(joint, fitted()) for _ in range(draws)]
    about = {
        "method": "svi", "guide": guide, "seed": seed, "epochs": len(elbo), "elbo": elbo,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    return Posterior(torch.stack(rows)[None], joint.layout, {}, about)


def trainer(
    joint: Joint, *, guide: str, init_scale: float, lr: float, mixture_every: int = 1
) -> tuple[Callable[..., float | None], Callable[[], dict[str, Tensor]]]:
    """A function that makes one SVI step, and one that draws all sites from the guide.

    Returns:
        (x, y, beta=1) -> the loss in nats, None when the mixtures are held; () -> sites.

    Raises:
        ValueError: if there is no such guide.
    """
    from pyro import poutine
    from pyro.infer import Trace_ELBO, autoguide
    from torch.distributions import constraints

    from swsmix.bayes.program import ByEntropy, Held, held_mixtures, program, sites_of

    held: dict[str, Held] = {}
    model = program(joint, held)
    x, y, num = joint.x, joint.y, len(joint.x)
    like = next(joint.net.parameters())
    at = torch.from_numpy(joint.start()).to(like.dtype)
    start = {name: value.to(like.device) for name, value in sites_of(joint, at).items()}
    options: dict[str, Any] = {"init_loc_fn": autoguide.init_to_value(values=start)}
    kinds = {
        "normal": autoguide.AutoNormal,
        "low-rank": autoguide.AutoLowRankMultivariateNormal,
        "delta": autoguide.AutoDelta,
    }
    if guide not in kinds:
        raise ValueError(f"guide must be one of {list(kinds)}; got {guide!r}")
    fitted: Any = kinds[guide](
        model, **options | ({} if guide == "delta" else {"init_scale": init_scale})
    )
    # An exponential: the softplus costs ten times as much.
    fitted.scale_constraint = constraints.positive
    fitted(x[:2], y[:2], num)  # makes the guide's parameters
    can_hold = mixture_every > 1 and guide == "normal"  # the guide of the weights is one of its own
    by_entropy = ByEntropy(fitted)(fitted) if guide == "normal" else fitted
    drawn: dict[str, Tensor] = {}

    def scored(*batch: Any) -> None:
        drawn.update(by_entropy(*batch))

    weights_only = poutine.block(
        scored, hide=[n for n in start if n.endswith((".share", ".mean", ".variance"))]
    )
    elbo = Trace_ELBO(max_plate_nesting=0)
    optimizer = torch.optim.Adam(
        fitted.parameters(), lr=lr, fused=like.device.type in ("cpu", "cuda")
    )
    count = 0

    def step(inputs: Tensor, targets: Tensor, beta: float = 1.0) -> float | None:
        nonlocal count
        whole = not can_hold or count % mixture_every == 0
        if whole:
            held.clear()
        count += 1
        optimizer.zero_grad()
        # beta (likelihood / beta - KL): the program divides, and this is of one size for Adam.
        loss = beta * elbo.differentiable_loss(
            model, scored if whole else weights_only, inputs, targets, num, beta
        )
        loss.backward()
        optimizer.step()
        if whole and can_hold:
            held.update(held_mixtures(joint, drawn))
        return float(loss.item()) if whole else None

    @torch.no_grad()
    def draw() -> dict[str, Tensor]:
        sites: dict[str, Tensor] = fitted(x[:2], y[:2], num)
        return sites

    return step, draw
