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
    """Approximate the posterior by a Pyro autoguide, and draw from it.

        maximise  E_q log p(data | w) - beta KL(q(w, phi) | p(w, phi))

    with one reparametrised sample per batch. beta rises linearly from 0.01 to 1 over the first
    `kl_warmup` of the steps, so that the weights fit the data before the prior prunes them (as in
    Sparse VD and VNQ). The guide starts at the MAP fit. After a KeyboardInterrupt the draws are
    from the guide as it is then, with a warning. A variational posterior is narrower than the true
    one, and covers one mode only.

    Args:
        joint: the model; the guide is on its network's device, in its dtype.
        epochs: the number of passes over the data.
        batch_size: cases per step; each step has a fixed cost, so small batches are slow.
        lr: Adam's learning rate.
        guide: `"normal"` (mean field), `"low-rank"` (a multivariate normal of low rank) or
            `"delta"` (a point: MAP over all sites at once).
        init_scale: the guide's std at the start, in unconstrained coordinates.
        kl_warmup: the share of the steps over which beta rises.
        mixture_every: update the mixtures' part of the guide every so many steps. In between one
            draw of the mixtures is held, so that its tables can be reused. 1 for small networks.
        draws: the number of draws from the fitted guide.
        seed: seed of batches and noise; the global random state does not change.
        progress: show a progress bar.

    Returns:
        The posterior, as one chain; `about["elbo"]` holds the ELBO of each epoch, with its beta,
        in nats per case.

    Raises:
        ValueError: for settings out of range.
        FloatingPointError: if the ELBO is not finite.
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
    checks.warn_if_untrained(
        joint.prior, "the guide starts from noise and must find what training would have found"
    )
    import pyro

    from swsmix.bayes.program import z_of

    x, y = joint.x, joint.y
    elbo, began = [], time.monotonic()
    device = x.device
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.autocast(device.type, enabled=False),  # the guide has the network's own dtype
        torch.random.fork_rng(devices=cuda),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
    ):
        torch.manual_seed(seed)
        step, draw = trainer(
            joint, guide=guide, init_scale=init_scale, lr=lr, mixture_every=mixture_every
        )
        try:
            for epoch in watched(range(epochs), "SVI", shown=progress):
                losses = []
                batches = torch.randperm(len(x), dtype=torch.int64, device=device).split(batch_size)
                for number, batch in enumerate(batches):
                    done = (epoch * len(batches) + number) / (epochs * len(batches))
                    beta = min(1.0, max(0.01, done / kl_warmup)) if kl_warmup else 1.0
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
                f"interrupted: the draws are from the guide after {len(elbo)} of {epochs} epochs",
                stacklevel=2,
            )
        with torch.no_grad():
            rows = [z_of(joint, draw()) for _ in range(draws)]
    about = {
        "method": "svi", "guide": guide, "seed": seed, "epochs": len(elbo), "elbo": elbo,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    posterior = Posterior(torch.stack(rows)[None], joint.layout, {}, about)
    posterior.verdict.warn()
    return posterior


def trainer(
    joint: Joint, *, guide: str, init_scale: float, lr: float, mixture_every: int = 1
) -> tuple[Callable[..., float | None], Callable[[], dict[str, Tensor]]]:
    """Two functions: step(x, y, beta=1) makes one SVI step, draw() draws all sites from the guide.

    A step returns the loss in nats, or None while the mixtures are held.

    Raises:
        ValueError: if there is no such guide.
    """
    from pyro import poutine
    from pyro.infer import Trace_ELBO

    from swsmix.bayes.program import EntropyScore, HeldMixture, held_mixtures, program

    held: dict[str, HeldMixture] = {}
    model = program(joint, held)
    x, y, num = joint.x, joint.y, len(joint.x)
    fitted, sites = _autoguide(joint, model, guide, init_scale)
    can_hold = mixture_every > 1 and guide == "normal"  # AutoNormal has a factor per site
    scored_guide = EntropyScore(fitted)(fitted) if guide == "normal" else fitted
    drawn: dict[str, Tensor] = {}

    def all_sites(*batch: Any) -> None:
        drawn.update(scored_guide(*batch))

    weights_only = poutine.block(
        all_sites, hide=[n for n in sites if n.endswith((".share", ".mean", ".variance"))]
    )
    elbo = Trace_ELBO(max_plate_nesting=0)
    fused = next(joint.net.parameters()).device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(fitted.parameters(), lr=lr, fused=fused)
    count = 0

    def step(inputs: Tensor, targets: Tensor, beta: float = 1.0) -> float | None:
        nonlocal count
        whole = not can_hold or count % mixture_every == 0
        if whole:
            held.clear()
        count += 1
        optimizer.zero_grad()
        # beta (likelihood / beta - KL): the program divides by beta; this keeps the loss's scale.
        loss = beta * elbo.differentiable_loss(
            model, all_sites if whole else weights_only, inputs, targets, num, beta
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


def _autoguide(joint: Joint, model: Any, kind: str, init_scale: float) -> tuple[Any, list[str]]:
    """Pyro's autoguide of this kind, starting at the MAP fit; and the names of the latent sites."""
    from pyro.infer import autoguide
    from torch.distributions import constraints

    from swsmix.bayes.program import sites_of

    kinds = {
        "normal": autoguide.AutoNormal,
        "low-rank": autoguide.AutoLowRankMultivariateNormal,
        "delta": autoguide.AutoDelta,
    }
    if kind not in kinds:
        raise ValueError(f"guide must be one of {list(kinds)}; got {kind!r}")
    like = next(joint.net.parameters())
    z = torch.from_numpy(joint.start()).to(like.dtype)
    start = {name: value.to(like.device) for name, value in sites_of(joint, z).items()}
    options: dict[str, Any] = {"init_loc_fn": autoguide.init_to_value(values=start)}
    if kind != "delta":
        options["init_scale"] = init_scale
    guide: Any = kinds[kind](model, **options)
    # Scales by the exponential: Pyro's default, the softplus, costs ten times as much.
    guide.scale_constraint = constraints.positive
    guide(joint.x[:2], joint.y[:2], len(joint.x))  # makes the guide's parameters
    return guide, list(start)
