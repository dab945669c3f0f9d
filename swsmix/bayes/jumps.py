"""Jumps of single weights between the components, from one trajectory of NUTS to the next.

A trajectory takes a weight from one component to another through the gap between them, and rarely
gets there: what is slow in NUTS under a mixture prior is how many weights are wide, and how large
hidden weights are against output weights. Here weights are moved one by one:

    redraw     a weight is drawn anew from the mixture; the likelihood decides
    transfer   two weights of a unit exchange their values, or what one gains the other loses
    scale      a unit's incoming weights and its bias times f, its outgoing weights over f

Each leaves p(weights | mixture, noise, data) invariant (Metropolis & Hastings; the last with the
Jacobian of its map). They are made in centred coordinates, see `swsmix.bayes.network`: the mean
input of each unit with a bias stays, and the ordinary bias, which has the prior, follows. A move
changes one unit, so that it costs a row of activations and what lies behind it, no whole network.
After every weight's turn the mixtures are drawn given the weights (`swsmix.bayes.mixture_draws`).

Only networks that `network` computes by hand have these moves. The loops are in `jump_loops`.
"""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from swsmix.bayes import jump_loops, mixture_draws
from swsmix.bayes.joint import Joint
from swsmix.bayes.layout import Array
from swsmix.bayes.network import SequentialEvaluator

SWEEPS = 10 if jump_loops.COMPILED else 1  # over all weights, per trajectory, at most
_TYPICAL = 128 * 3  # passes of a trajectory: what the moves may cost, in the same units
_KINDS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.Tanh: 1, nn.ReLU: 2, nn.Sigmoid: 3}
_LIKELIHOODS = {"gaussian": 0, "categorical": 1, "binary": 2}


class Jumps:
    """The moves of a joint density's weights, and the draws of its mixtures.

    Args:
        joint: the model.
        sweeps: how often each weight is moved per call, by each kind of move; fewer where that
            would cost more than a trajectory.

    Example:
        >>> import torch
        >>> from swsmix import HyperPrior, MixturePrior
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
        >>> prior = MixturePrior(net, 2, hyper=HyperPrior(mean_count=0.1))
        >>> joint = Joint(net, prior, torch.randn(9, 3), torch.randn(9))
        >>> jumps = Jumps(joint)
        >>> z = jumps(joint.centre(joint.start()), np.random.default_rng(0))
    """

    def __init__(self, joint: Joint, sweeps: int = SWEEPS) -> None:
        self.joint, self.rounds = joint, list[int]()  # how many moves of each kind in each
        self.kinds = np.array([True, True, True])  # redraw, transfer, scale
        evaluator, y = joint._compiled
        layers = _layers(evaluator) if isinstance(evaluator, SequentialEvaluator) else None
        if layers is None or not isinstance(evaluator, SequentialEvaluator):
            return
        linear, kinds, first = layers
        layout = joint.layout
        shapes = [layout.parameters[f"{prefix}weight"] for prefix in linear]
        sizes = np.array([shapes[0][1], *(shape[0] for shape in shapes)], np.int64)
        slices = layout.slices
        weight_at = [slices[f"{prefix}weight"].start for prefix in linear]
        biases = [f"{prefix}bias" for prefix in linear]
        bias_at = [slices[name].start if name in slices else -1 for name in biases]
        self._net = (
            sizes, np.concatenate([[0], sizes.cumsum()]), np.array(kinds, np.int64),
            np.array(weight_at, np.int64), np.array(bias_at, np.int64),
        )  # fmt: skip
        self._x = np.ascontiguousarray(
            jump_loops.activated(first, evaluator.x.astype(np.float64)).T
        )
        if layout.likelihood == "categorical":
            y = np.eye(sizes[-1])[y]
        self._y = np.ascontiguousarray(y.reshape(len(evaluator.x), -1).T.astype(np.float64))
        self._group = np.full(layout.num_parameters, -1, np.int64)
        for number, group in enumerate(layout.groups):
            self._group[layout.weight_index(group)] = number
        weights = int(sizes[:-1] @ sizes[1:])
        most = _TYPICAL * layout.num_parameters * weights // max(_work(sizes), 1)
        number = max(1, min(sweeps * weights, most))
        rounds = -(-number // weights)
        self.rounds = [number // rounds] * rounds
        self._tau = np.array([term.tau for term in joint.terms.values()], np.float64)

    def __call__(self, z: Array, rng: np.random.Generator) -> Array:
        """Other weights and mixtures, from z in centred coordinates (d,).

        Args:
            z: it stays as it is.
            rng: source of proposals and choices.

        Returns:
            A new z; without jumps, the same.
        """
        if not self.rounds:
            return z
        layout, z = self.joint.layout, z.copy()
        weights = z[: layout.num_parameters]
        noise = z[-1] if layout.learns_noise else 2.0 * math.log(layout.noise_std or 1.0)
        target = _LIKELIHOODS[layout.likelihood], self._y, math.exp(-noise)
        for number in self.rounds:
            prior = self._group, self._mixtures(z), self._tau, float(self.joint.other_std)
            jump_loops.move_(self._net, prior, target, self._x, weights, number, self.kinds, rng)
            self._draw_mixtures_(z, rng)
        return z

    def _mixtures(self, z: Array) -> Array:
        """Heights, means and 1 / sigma of all mixtures (groups, 3, k)."""
        terms = self.joint.terms
        mixtures = np.zeros((len(terms), 3, max(len(t.components.mean) for t in terms.values())))
        mixtures[:, 0] = -math.inf
        for row, (group, term) in zip(mixtures, terms.items(), strict=True):
            u, mu, xi = self.joint.layout.mixture_slices[group]
            at = term.at(z[u], z[mu], z[xi])
            row[:, : len(at[0])] = at
        return mixtures

    def _draw_mixtures_(self, z: Array, rng: np.random.Generator) -> None:
        for group, term in self.joint.terms.items():
            if term.tau == 1.0:
                u, mu, xi = self.joint.layout.mixture_slices[group]
                w = self.joint.uncentre(z)[self.joint.layout.weight_index(group)]
                z[u], z[mu], z[xi] = mixture_draws.drawn(term, w, z[u], z[mu], z[xi], rng)


def _layers(evaluator: SequentialEvaluator) -> tuple[list[str], list[int], int] | None:
    """Prefixes of the linear layers, the activation after each, and that before the first.

    None if two activations follow one another, or there is no linear layer.
    """
    linear, kinds = list[str](), [0]
    for prefix, layer in evaluator.layers:
        if type(layer) is nn.Linear:
            linear.append(prefix)
            kinds.append(0)
        elif kind := _KINDS.get(type(layer), 0):  # what flattens changes nothing here
            if kinds[-1]:
                return None
            kinds[-1] = kind
    return (linear, kinds[1:], kinds[0]) if linear else None


def _work(sizes: Array) -> int:
    """What one move of every weight costs, in multiplications per case."""
    own = sizes[:-1] * sizes[1:]  # of each layer, all its units
    after = [
        int(sizes[layer + 2 : layer + 3].sum() + own[layer + 2 :].sum())
        for layer in range(len(own))
    ]
    return int(own @ (1 + np.array(after)))
