"""A trained network to a small file with inputs and no labels."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swsmix import codec
from swsmix._progress import watched
from swsmix.compression import layerwise
from swsmix.compression.compensation import entropy
from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.feeding import Inputs, Output, batches_of, call, first_tensor
from swsmix.compression.hessians import evaluating
from swsmix.compression.layerwise import Done
from swsmix.compression.uses import Layer, moments, scout, token_counts

_FEWEST = 64  # weights of a tensor that gets values of its own
_REFERENCE = 0.1  # lambda / mean w^2 at which the sensitivity of a tensor is measured
_SAMPLE = 512  # inputs of that


class Answers(NamedTuple):
    error: float
    agreement: float


@dataclasses.dataclass
class Job:
    model: nn.Module
    weights: dict[str, Tensor]
    parameters: dict[str, Tensor]
    used: list[Any]
    held: list[Any]
    output: Output
    damping: float
    layers: dict[str, Layer] = dataclasses.field(default_factory=dict)
    price: dict[str, float] = dataclasses.field(default_factory=dict)
    target: list[Tensor] = dataclasses.field(default_factory=list)
    worth: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    given: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def answers(self, batches):
        with evaluating(self.model):
            return [self.output(call(self.model, b)).detach() for b in batches]

    def measure(self, batches, target):
        change = power = same = count = 0.0
        for y, was in zip(self.answers(batches), target, strict=True):
            change += float((y.double() - was.double()).square().sum())
            power += float(was.double().square().sum())
            same += float((y.argmax(-1) == was.argmax(-1)).sum())
            count += was[..., 0].numel()
        return Answers(change / (power or 1.0), same / count)

    def restore(self):
        for n, t in self.given.items():
            self.parameters[n].detach().copy_(t)


def prepare(model, inputs, output=first_tensor, damping=0.1, scale="fisher"):
    parameters = dict(model.named_parameters())
    weights = {n: p for n, p in parameters.items() if p.is_floating_point() and p.ndim >= 2 and p.numel() >= _FEWEST}
    device = next(iter(weights.values())).device
    used, held = batches_of(inputs, device)
    job = Job(model, weights, parameters, used, held, output, damping)
    job.layers = scout(model, weights, [*used, *held])
    job.given = {n: p.detach().clone() for n, p in parameters.items()}
    job.target = job.answers(held)
    sample, rows = [], 0
    for b in used:
        sample.append(b); rows += 256
        if rows >= _SAMPLE: break
    target = job.answers(sample)
    for n, layer in job.layers.items():
        w = weights[n].detach()
        ms = float(w.double().square().mean()) or 1.0
        if scale == "absolute": job.price[n] = 1.0
        elif scale == "power": job.price[n] = ms
        else:
            m = w.reshape(len(w), -1)
            c = layerwise.plain(m, _REFERENCE * ms)
            d = float((c.values - m).double().square().sum())
            w.copy_(c.values.reshape(w.shape))
            e = job.measure(sample, target).error
            w.copy_(job.given[n])
            job.price[n] = d / max(e, 1e-12)
            if scale == "half": job.price[n] = math.sqrt(job.price[n] * ms)
            if scale == "halfabs": job.price[n] = math.sqrt(job.price[n])
    total = sum(w.numel() for w in weights.values())
    mean = sum(w.numel() * math.log(job.price[n]) for n, w in weights.items()) / total
    for n in job.price: job.price[n] /= math.exp(mean)
    return job


def attempt(job, lam, plain=False):
    job.restore()
    done = []
    for n, layer in job.layers.items():
        pieces = []
        if not plain and not layer.note and not layer.tokens:
            used = moments(job.model, layer, job.weights, job.used, 0)
            held = moments(job.model, layer, job.weights, job.held, len(job.used))
            pieces = layerwise.pieces_of(layer, used, held)
        done.append(layerwise.quantise_(n, job.parameters, layer, pieces, lam * job.price[n], job.damping, job.worth.get(n))[0])
    total = sum(d.weights for d in done)
    return done, sum(d.weights * d.bits for d in done) / total, job.measure(job.held, job.target)


def row_worth(job, draws=32, clamp=4.0):
    g = torch.Generator().manual_seed(0)
    total = {n: 0.0 for n in job.weights}
    with evaluating(job.model), torch.enable_grad():
        for k in range(draws):
            y = job.output(call(job.model, job.used[k % len(job.used)]))
            v = torch.randn(y.shape, generator=g).to(y)
            for n, d in zip(job.weights, torch.autograd.grad((y * v).sum(), list(job.weights.values()), allow_unused=True)):
                if d is not None: total[n] = total[n] + d.reshape(len(d), -1).double().square().sum(1)
    for n, t in total.items():
        if torch.is_tensor(t) and t.sum() > 0:
            w = t / t.mean()
            w = w.clamp(1 / clamp, clamp)
            job.worth[n] = w / w.log().mean().exp()
