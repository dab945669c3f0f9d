"""Random mixtures and weights, in four types, against a twin with 64 bits of mantissa and mpmath.

A sample of 600 (its seed is printed), or 200,000 in eight parts with `SWSMIX_HUNT=full`. What is
asked of each number is the bound that `swsmix.tables.exact` derives, for the very weight and
mixture, and its rounding to the type it is given in: a number outside it, or nan, is *wrong*.
"""

from __future__ import annotations

import collections
import contextlib
import os
import time

import mpmath
import numpy as np
import pytest
import torch

from swsmix import GaussianMixture, HyperPrior, m_step_, tables
from swsmix.em import Moments
from swsmix.tables.regions import decision_regions

pytestmark = [
    pytest.mark.hunt,
    pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="needs an 80-bit long double"),
]

LONG, U = np.longdouble, np.longdouble(2.0) ** -53
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WEIGHTS, BATCH, PARTS = 12, 25, 8
LOG_SQRT_2PI = np.log(2 * np.arctan(LONG(1)) * 4) / 2
# One mixture in so many gets the slower checks: the M step and regions, cells, mpmath.
EVERY = {"slow": 10, "cells": 1000, "mpmath": 100}


def draw(rng, k, dtype):
    """A mixture of k components, and weights for it, in a type."""
    info = torch.finfo(dtype)
    least, most = float(info.smallest_normal) * info.eps, float(info.max)
    scale = 10.0 ** rng.uniform(-3, 3)
    mean = scale * rng.standard_normal(k)
    log_std = rng.uniform(-12, 12, k)
    kind = rng.integers(6)
    if kind == 1:
        log_std[:] = log_std[0]  # equal
    elif kind == 2:
        log_std = log_std[0] + 1e-3 * rng.standard_normal(k)  # nearly equal
    elif kind == 3:
        log_std = np.log10(scale) + rng.uniform(-3, 0, k)  # as in a network
    elif kind == 4 and k > 1:  # duplicates
        same = rng.integers(k, size=k)
        mean, log_std = mean[same], log_std[same]
    elif kind == 5 and rng.random() < 0.3:  # denormal stds
        log_std[rng.integers(k)] = np.log10(least) + rng.uniform(0.1, 3)
    if rng.random() < 0.2:
        mean[rng.integers(k)] = 0.0
    std = (10.0**log_std).clip(least, most / 4)
    mean = mean.clip(-most, most)
    mixing = 10.0 ** -rng.uniform(0, rng.choice([0, 3, 12]), k)
    mixing[rng.random(k) < rng.choice([0.0, 0.2])] = 0.0
    mixing[0] += mixing.sum() == 0
    mixing /= mixing.sum()
    j, i = rng.integers(k, size=(2, WEIGHTS))
    w = mean[j] + 3 * std[j] * rng.standard_normal(WEIGHTS)
    w[2:4] = 0.5 * (mean[j] + mean[i])[2:4]
    w[4] = mean[j[4]]
    w[5] = 0.0
    w[6:8] = rng.choice([-1, 1], 2) * 10.0 ** rng.uniform(np.log10(least), np.log10(most), 2)
    w[8] = rng.choice([-1, 1]) * least * rng.integers(1, 50)
    w[9] = rng.choice([-1, 1]) * most * rng.choice([1.0, 0.5, 1e-2])
    numbers = [torch.from_numpy(np.asarray(each)).to(dtype) for each in (mixing, mean, std)]
    return GaussianMixture(*numbers), torch.from_numpy(w.clip(-most, most)).to(dtype)


class Twin:
    """All functions of a batch of mixtures (b, k) at weights (b, n), by numpy's long doubles."""

    def __init__(self, mixtures, weights):
        def stacked(parts):
            return np.stack([p.double().numpy() for p in parts]).astype(LONG)

        pi, mu, sigma = (
            stacked([getattr(m, name) for m in mixtures])[:, None]
            for name in ("mixing", "mean", "std")
        )
        self.w = stacked(weights)
        w = self.w[..., None]
        alive = pi > 0
        log_pi = np.where(alive, np.log(np.where(alive, pi, 1)), -np.inf)
        log_pi, level = log_pi, log_pi - np.log(sigma)
        self.off, z = w - mu, (w - mu) / sigma
        joint = level - z * z / 2
        r = joint.argmax(-1)[..., None]

        def at_r(x):
            return np.take_along_axis(np.broadcast_to(x, joint.shape), r, -1)

        z_r, sigma_r, mu_r = at_r(z), at_r(sigma), at_r(mu)
        one, other = (w - mu_r) * ((sigma_r - sigma) / sigma_r) / sigma, (mu_r - mu) / sigma
        parts, whole = abs(one) + abs(other), abs(z) + abs(z_r)
        gap = np.where(parts < whole, one + other, z - z_r)
        odds = level - at_r(level) - gap * (z + z_r) / 2
        top = odds.max(-1, keepdims=True)
        self.odds = odds - top
        total = np.exp(self.odds).sum(-1, keepdims=True)
        self.gamma = np.exp(self.odds) / total
        self.f = (z_r * z_r / 2 - at_r(level) - top - np.log(total))[..., 0] + LOG_SQRT_2PI
        self.pull = z / sigma
        self.slope = (self.gamma * self.pull).sum(-1)
        self.a = (self.gamma / sigma / sigma).sum(-1)
        # The bounds: what rounding may do to log gamma_j, and what that does to the rest.
        large = np.where(alive, abs(np.where(alive, log_pi, 0)) + abs(np.log(sigma)), 0).max(-1) + 1
        self.kappa = abs(self.f) + 2 * large + np.log(LONG(pi.shape[-1]))
        far = joint.max(-1, keepdims=True) < -1e3 * (1 - 1e-9)
        reach = np.where(far, np.minimum(parts, whole) * whole, z * z + z_r * z_r)
        delta = 8 * U * (reach / 2 + large[..., None])
        self.off_by = np.expm1(delta.clip(max=1e4))
        mean_off = (self.gamma * self.off_by).sum(-1, keepdims=True)
        self.delta = self.off_by + mean_off  # relative, of gamma
        # What rounding can lift to the top: at the middle of two, far from both, its gamma is 0 but
        # the odds of 1e24 themselves are off by millions.
        self.lifted = (self.odds > -delta) & (self.odds < 0) & (delta > 0.05)
        # Else float64 cannot tell the components apart.
        self.clear = (mean_off[..., 0] < 0.05) & ~self.lifted.any(-1)
        swing = abs(self.pull - self.slope[..., None])
        self.slope_error = (2 * self.gamma * swing * self.delta).sum(-1)
        self.slope_error += 8 * U * (self.gamma * abs(self.pull)).sum(-1)
        felt = self.odds > -760  # the rest has a gamma of 0; these may too, below -708
        self.lost = np.where(felt, LONG(2.0) ** -1021, 0)
        self.slope_error += (self.lost * (abs(self.pull) + 1 / sigma + 1)).sum(-1)
        unclear = np.where(self.odds > -delta, swing, 0).max(-1)
        self.slope_error = np.where(self.clear, self.slope_error, self.slope_error + unclear)


def number(tensor):
    return tensor.detach().double().numpy().astype(LONG)


def within(found, exact, error, dtype):
    """Which numbers are right: within the error and half a unit of their type, or overflow."""
    info = torch.finfo(dtype)
    room = error + abs(exact) * LONG(info.eps) * 0.501 + LONG(info.smallest_normal) * LONG(info.eps)
    low, high = exact - room, exact + room
    most = LONG(info.max) * (1 - LONG(info.eps) / 2)  # rounding takes what is beyond to infinity
    infinite = np.where(found > 0, high >= most, low <= -most)
    return np.where(np.isinf(found), infinite, (found >= low) & (found <= high))


def check_one(count, b, twin, mixture, w, table, plain=True):
    """The value, the gradient, the responsibilities and the moments of one mixture."""
    dtype, k = w.dtype, len(mixture.mean)

    def tell(name, right):
        count[name] += 1
        if not np.all(right):
            count[f"wrong {name}"] += 1
            count.setdefault("first", []).append(
                (name, dtype, [t.tolist() for t in (mixture.mixing, mixture.mean, mixture.std, w)])
                if k < 9
                else (name, dtype, k)
            )

    f, slope, gamma = twin.f[b], twin.slope[b], twin.gamma[b]
    value_error = LONG(table.error.value) * (1 + abs(f))
    slope_error = twin.slope_error[b]
    off = gamma * twin.delta[b] + k * U * gamma + twin.lost[b]
    unclear = (twin.odds[b] > -1e3) | twin.lifted[b]
    off = np.where(~twin.clear[b][:, None] & unclear, 1, off)
    with np.errstate(over="ignore", invalid="ignore"):
        if plain:
            leaf = w.clone().requires_grad_()
            log_prob = mixture.log_prob(leaf)
            log_prob.sum().backward()
            type_ = log_prob.dtype
            tell("value", within(number(log_prob), -f, value_error, type_))
            tell("autograd", within(number(leaf.grad), -slope, slope_error, dtype))
            responsible = number(mixture.responsibilities(w))
            tell("responsibilities", within(responsible, gamma, off, type_) & (responsible >= 0))
        full = table.full(w)
        tell("gradient", within(number(full.gradient), slope, slope_error, dtype))
        near = twin.kappa[b] < 6e4  # there the constant bound of the tables holds too
        constant = LONG(table.error.gradient) * (abs(slope) + np.sqrt(twin.a[b]))
        tell("constant", within(number(full.gradient), slope, constant, dtype) | ~near)
        total, summed = f.sum(), value_error.sum() + len(w) * U * abs(f).sum()
        tell("sum", within(number(full.value), total, summed, torch.float64))
        away = twin.off[b]
        for n, moment in enumerate(full.moments):
            room = ((off + gamma * (2 * n + len(w)) * U) * abs(away) ** n).sum(0)
            room += LONG(2.0) ** -1070  # where products underflow
            exact, found = (gamma * away**n).sum(0), number(moment)
            over = (gamma * abs(away) ** n).sum(0) >= LONG(np.finfo(float).max)  # on the way
            right = within(found, exact, room, torch.float64)
            tell("moments", right | (over & np.isinf(found)))


def check_slow(count, b, twin, mixture, w, full):
    """The M step from these moments, and the regions' component of each weight."""
    k, moments = len(mixture.mean), Moments(mixture.mean.double().clone(), *full)
    if all(torch.isfinite(each).all() for each in full):
        hyper, moved = HyperPrior(std=0.05, std_count=2.0), mixture.plain_copy()
        m_step_(moved, moments, hyper)
        n, first, second = (number(each) for each in full)
        shift = np.where(n > 0, first / np.maximum(n, LONG(1e-300)), 0)
        about = second - 2 * shift * first + shift * shift * n
        off = 16 * U * (second + 2 * abs(shift * first) + shift * shift * n)
        variance = (np.maximum(about, 0) + 2.0 * LONG(0.05) ** 2) / (n + 4)
        type_ = mixture.mean.dtype
        mean, centre = number(moved.mean), number(mixture.mean)
        right = within(mean, centre + shift, 8 * U * (abs(centre) + abs(shift)), type_)
        room = off / (n + 4) / np.sqrt(variance) + 8 * U * np.sqrt(variance)
        right &= within(number(moved.std), np.sqrt(variance), room, type_)
        share = (n + 1) / (n + 1).sum()
        right &= within(number(moved.mixing), share, (8 + k) * U * share, type_)
        count["M step"] += 1
        count["wrong M step"] += not right.all()
    if k <= 32:
        claimed = decision_regions(mixture).assign(w).numpy()[:, None]
        behind = -np.take_along_axis(twin.odds[b], claimed, -1)[:, 0]
        off = np.take_along_axis(twin.off_by[b], claimed, -1)[:, 0] * 8 + twin.off_by[b].min(-1) * 8
        # The boundary itself is rounded: what that moves the two apart.
        pulls = np.take_along_axis(twin.pull[b], claimed, -1)[:, 0]
        best = np.take_along_axis(twin.pull[b], twin.odds[b].argmax(-1)[:, None], -1)[:, 0]
        size = abs(twin.w[b]) + abs(np.take_along_axis(twin.off[b], claimed, -1)[:, 0])
        count["assign"] += 1
        count["wrong assign"] += not (behind <= off + 64 * U * size * abs(pulls - best)).all()


def check_cells(count, rng, mixture, dtype):
    """Many weights at once, by each kind of loop, at sixty places."""
    k = len(mixture.mean)
    size = (1 << 16) // k + 2000
    j = rng.integers(k, size=size)
    w = mixture.mean.double().numpy()[j]
    w = w + 3 * mixture.std.double().numpy()[j] * rng.standard_normal(size)
    w = torch.from_numpy(w.clip(-float(torch.finfo(dtype).max), float(torch.finfo(dtype).max)))
    w = w.to(dtype)
    seen = torch.from_numpy(rng.choice(size, 60, replace=False))
    twin = Twin([mixture], [w[seen]])
    for loops in (contextlib.nullcontext, tables.uncompiled):
        with loops(), np.errstate(over="ignore", invalid="ignore"):
            table = tables.build(mixture.mixing, mixture.mean, mixture.std)
            found = number(table.gradient(w)[seen])
            room = LONG(table.error.gradient) * (abs(twin.slope[0]) + np.sqrt(twin.a[0]))
            right = within(found, twin.slope[0], room + twin.slope_error[0], dtype)
            count["cells"] += 1
            count["wrong cells"] += not right.all()


def check_mpmath(count, b, twin, mixture, w):
    """The twin itself: f and f' of three weights with 60 digits."""
    parts = [t.double().tolist() for t in (mixture.mixing, mixture.mean, mixture.std)]
    with mpmath.workdps(60 + 20 * (w.dtype == torch.float64)):
        for i in range(0, len(w), 5):
            x = mpmath.mpf(w[i].item())
            joint = [
                (
                    mpmath.log(p) - mpmath.log(s) - ((x - m) / s) ** 2 / 2,
                    (x - m) / mpmath.mpf(s) / s,
                )
                for p, m, s in zip(*parts, strict=True)
                if p > 0
            ]
            top = max(each for each, _ in joint)
            terms = [(mpmath.exp(each - top), pull) for each, pull in joint if each - top > -2000]
            total = sum(each for each, _ in terms)
            f = -top - mpmath.log(total) + mpmath.log(2 * mpmath.pi) / 2
            slope = sum(each * pull for each, pull in terms) / total
            found_f, found_slope = (
                mpmath.mpf(np.format_float_scientific(each[b, i], precision=22))
                for each in (twin.f, twin.slope)
            )
            rounding = mpmath.mpf(str(float(LONG(2) ** -60 * twin.kappa[b, i])))
            room = mpmath.mpf(np.format_float_scientific(twin.slope_error[b, i], precision=20)) / 2
            count["mpmath"] += 1
            count["wrong mpmath"] += abs(found_f - f) > rounding
            count["wrong mpmath"] += abs(found_slope - slope) > room + abs(slope) * 2.0**-58


@pytest.mark.parametrize("part", range(PARTS if os.environ.get("SWSMIX_HUNT") == "full" else 1))
def test_no_mixture_and_no_weight_have_a_number_outside_its_bound(full, part, capsys):
    seed, mixtures = (part, 200_000 // PARTS) if full else (int(time.time()) // 86_400, 600)
    with capsys.disabled():
        print(f"\nmixtures: seed {seed}")
    rng, count, start = np.random.default_rng(seed), collections.Counter(), time.monotonic()
    clear = [0, 0]
    for batch in range(mixtures // BATCH):
        k = int(300.0 ** rng.random() * 1.0033)
        drawn = [draw(rng, k, TYPES[(batch + i) % 4]) for i in range(BATCH)]
        with np.errstate(all="ignore"):
            twin = Twin(*zip(*drawn, strict=True))
        for b, (mixture, w) in enumerate(drawn):
            number_ = batch * BATCH + b
            table = tables.direct(mixture.mixing, mixture.mean, mixture.std)
            check_one(count, b, twin, mixture, w, table, number_ % 3 == 0)
            clear[0] += int(twin.clear[b].sum())
            clear[1] += len(w)
            with np.errstate(all="ignore"):
                if number_ % EVERY["slow"] == 0:
                    check_slow(count, b, twin, mixture, w, table.moments(w))
                if number_ % EVERY["mpmath"] == 3:
                    check_mpmath(count, b, twin, mixture, w)
                if number_ % EVERY["cells"] == 7:
                    check_cells(count, rng, mixture, w.dtype)
        if full and batch % 400 == 399:
            with capsys.disabled():
                print(f"{number_ + 1} {time.monotonic() - start:.0f} s", _told(count), flush=True)
    with capsys.disabled():
        print(
            _told(count),
            f"told apart: {clear[0]} of {clear[1]} weights, {time.monotonic() - start:.0f} s",
        )
    assert not sum(n for name, n in count.items() if name.startswith("wrong")), count["first"][:5]


def _told(count):
    return {name: n for name, n in sorted(count.items()) if name != "first"}
