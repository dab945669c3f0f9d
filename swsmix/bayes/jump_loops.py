"""The moves of `jumps`, as loops over rows of activations; numba compiles them if it is installed.

What they share, as tuples:

    net      units of each layer, the inputs first; where each layer's rows begin; the activations;
             where weights and biases (-1: none) begin in theta
    prior    the group of each parameter (-1: none); heights, means and 1 / sigma (groups, 3, k);
             tau of each group; the std of the parameters under no mixture
    target   the kind of the likelihood; the targets (units, n); 1 / sigma_y^2
    old      ordinary biases (rows,), inputs and outputs of all units (rows, n)
    new      the same after a move, where it changes them
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

try:
    from swsmix.bayes.kernels import compiled

    COMPILED = True
except ImportError:  # numba is an extra
    COMPILED = False

    def compiled(function: Any) -> Any:
        """The function as it is."""
        return function


@compiled
def activated(kind, x):
    """The activation of a kind: 0 none, 1 tanh, 2 ReLU, 3 sigmoid."""
    if kind == 1:
        return np.tanh(x)
    if kind == 2:
        return np.maximum(x, 0.0)
    if kind == 3:
        return 0.5 * (1.0 + np.tanh(0.5 * x))
    return x.copy()


@compiled
def _log_prior(prior, index, value):
    """Log density of one parameter up to a constant, at tau = 1."""
    group, mixtures, _, other_std = prior
    if group[index] < 0:
        return -0.5 * (value / other_std) ** 2
    height, mean, inverse_std = mixtures[group[index]]
    top = -np.inf
    for j in range(len(mean)):
        top = max(top, height[j] - 0.5 * ((value - mean[j]) * inverse_std[j]) ** 2)
    total = 0.0
    for j in range(len(mean)):
        total += math.exp(height[j] - 0.5 * ((value - mean[j]) * inverse_std[j]) ** 2 - top)
    return top + math.log(total)


@compiled
def _log_ratio(prior, index, before, after):
    """By how much the log prior rises, tau included."""
    group, _, tau, _ = prior
    strength = tau[group[index]] if group[index] >= 0 else 1.0
    return strength * (_log_prior(prior, index, after) - _log_prior(prior, index, before))


@compiled
def _drawn(prior, index, rng):
    """A parameter drawn from its prior at tau = 1."""
    group, mixtures, _, other_std = prior
    noise = rng.standard_normal()
    if group[index] < 0:
        return other_std * noise
    height, mean, inverse_std = mixtures[group[index]]
    total, scale = 0.0, math.sqrt(2.0 * math.pi)
    at = rng.random()
    chosen = 0
    for j in range(len(mean)):
        if height[j] == -np.inf:
            continue
        chosen = j  # rounding may leave the sum a little below 1
        total += math.exp(height[j]) * scale / inverse_std[j]
        if at < total:
            break
    return mean[chosen] + noise / inverse_std[chosen]


@compiled
def _log_likelihood(target, out):
    """Of outputs (units, n), up to a constant."""
    kind, y, precision = target
    value = 0.0
    for i in range(out.shape[1]):
        if kind == 1:
            top = -np.inf
            for unit in range(out.shape[0]):
                top = max(top, out[unit, i])
            total = 0.0
            for unit in range(out.shape[0]):
                total += math.exp(out[unit, i] - top)
                value += y[unit, i] * out[unit, i]
            value -= top + math.log(total)
            continue
        for unit in range(out.shape[0]):
            o = out[unit, i]
            if kind == 0:
                value -= 0.5 * precision * (y[unit, i] - o) ** 2
            else:
                value += y[unit, i] * o - max(o, 0.0) - math.log1p(math.exp(-abs(o)))
    return value


@compiled
def _forward(net, theta, old, new, layer, unit, factor):
    """From a unit's new input to the outputs; its outgoing weights are divided by the factor."""
    sizes, rows, kinds, weight_at, bias_at = net
    bias, into, out = old
    new_bias, new_into, new_out = new
    here = rows[layer + 1] + unit
    new_out[here] = activated(kinds[layer], new_into[here])
    for m in range(layer + 1, len(kinds)):
        for g in range(sizes[m + 1]):
            row = rows[m + 1] + g
            at = weight_at[m] + g * sizes[m]
            if m == layer + 1:
                w = theta[at + unit]
                moved = (w / factor) * new_out[here] - w * out[here]
            else:
                moved = np.zeros(out.shape[1])
                for k in range(sizes[m]):
                    moved += theta[at + k] * (new_out[rows[m] + k] - out[rows[m] + k])
            mean = moved.mean() if bias_at[m] >= 0 else 0.0
            new_bias[row] = bias[row] - mean
            new_into[row] = into[row] + (moved - mean)
            new_out[row] = activated(kinds[m], new_into[row])


@compiled
def _is_taken(net, prior, target, old, new, value, layer, unit, change, rng):
    """Whether what `_forward` computed is accepted, and the log likelihood.

    The change is the log of the ratio of all but likelihood and biases.
    """
    sizes, rows, kinds, _, bias_at = net
    bias, into, out = old
    new_bias, new_into, new_out = new
    last = len(kinds)
    fresh = _log_likelihood(target, new_out[rows[last] :])
    change += fresh - value
    for m in range(layer, last):
        if bias_at[m] < 0:
            continue
        for g in range(sizes[m + 1]):
            if m > layer or g == unit:
                row, index = rows[m + 1] + g, bias_at[m] + g
                change += _log_ratio(prior, index, bias[row], new_bias[row])
    if not math.log(1.0 - rng.random()) < change:
        return False, value
    for m in range(layer, last):
        for g in range(sizes[m + 1]):
            if m > layer or g == unit:
                row = rows[m + 1] + g
                bias[row], into[row], out[row] = new_bias[row], new_into[row], new_out[row]
    return True, fresh


@compiled
def _step(rng, smallest):
    """A step of a random size."""
    return rng.standard_normal() * math.exp(smallest * rng.random())


@compiled
def move_(net, prior, target, x, theta, number, kinds, rng):
    """So many redraws and transfers, and a scale for every sixth, in place of theta.

    Kinds: which of the three are made.
    """
    sizes, rows, activations, weight_at, bias_at = net
    n, last = x.shape[1], len(activations)
    bias, new_bias = np.zeros(rows[-1]), np.zeros(rows[-1])
    into, out = np.zeros((rows[-1], n)), np.zeros((rows[-1], n))
    new_into, new_out = np.zeros((rows[-1], n)), np.zeros((rows[-1], n))
    out[: sizes[0]] = x
    for m in range(last):
        for g in range(sizes[m + 1]):
            row = rows[m + 1] + g
            for k in range(sizes[m]):
                into[row] += theta[weight_at[m] + g * sizes[m] + k] * out[rows[m] + k]
            if bias_at[m] >= 0:
                bias[row] = theta[bias_at[m] + g] - into[row].mean()
                into[row] += bias[row]
            out[row] = activated(activations[m], into[row])
    old, new = (bias, into, out), (new_bias, new_into, new_out)
    value = _log_likelihood(target, out[rows[last] :])
    weights = 0
    for m in range(last):
        weights += sizes[m] * sizes[m + 1]
    for turn in range(2 * number + number // 6):
        # A weight, each as often as the others; and what it belongs to.
        which, layer = int(rng.random() * weights), 0
        while which >= sizes[layer] * sizes[layer + 1]:
            which -= sizes[layer] * sizes[layer + 1]
            layer += 1
        unit, i = which // sizes[layer], which % sizes[layer]
        here, at = rows[layer + 1] + unit, weight_at[layer] + unit * sizes[layer]
        centred = bias_at[layer] >= 0
        if turn >= 2 * number:  # scale
            if layer + 1 == last or not kinds[2]:
                continue
            log_f = _step(rng, -3.0)
            f = math.exp(log_f)
            change = (sizes[layer] + centred - sizes[layer + 2]) * log_f
            for k in range(sizes[layer]):
                change += _log_ratio(prior, at + k, theta[at + k], f * theta[at + k])
            for g in range(sizes[layer + 2]):
                index = weight_at[layer + 1] + g * sizes[layer + 1] + unit
                change += _log_ratio(prior, index, theta[index], theta[index] / f)
            new_bias[here], new_into[here] = f * bias[here], f * into[here]
            _forward(net, theta, old, new, layer, unit, f)
            taken, value = _is_taken(net, prior, target, old, new, value, layer, unit, change, rng)
            if taken:
                theta[at : at + sizes[layer]] *= f
                if centred:
                    theta[bias_at[layer] + unit] *= f
                for g in range(sizes[layer + 2]):
                    theta[weight_at[layer + 1] + g * sizes[layer + 1] + unit] /= f
            continue
        if not kinds[turn % 2]:
            continue
        j, change = i, 0.0
        one, other = theta[at + i], theta[at + i]
        if turn % 2 == 0:  # redraw
            one = _drawn(prior, at + i, rng)
            # The proposal has the prior's density, so that tau - 1 of it is left.
            change = _log_ratio(prior, at + i, theta[at + i], one)
            change -= _log_prior(prior, at + i, one) - _log_prior(prior, at + i, theta[at + i])
        else:  # transfer
            j = int(rng.random() * sizes[layer])
            if i == j:
                continue
            one, other = theta[at + j], theta[at + i]
            if rng.random() < 0.5:
                step = _step(rng, -4.0)
                one, other = theta[at + i] + step, theta[at + j] - step
                change = _log_ratio(prior, at + i, theta[at + i], one)
                change += _log_ratio(prior, at + j, theta[at + j], other)
        moved = (one - theta[at + i]) * out[rows[layer] + i]
        if i != j:
            moved += (other - theta[at + j]) * out[rows[layer] + j]
        mean = moved.mean() if centred else 0.0
        new_bias[here] = bias[here] - mean
        new_into[here] = into[here] + (moved - mean)
        _forward(net, theta, old, new, layer, unit, 1.0)
        taken, value = _is_taken(net, prior, target, old, new, value, layer, unit, change, rng)
        if taken:
            theta[at + i] = one
            if i != j:
                theta[at + j] = other
