"""Adaptive models of binary decisions: the predictions of many contexts, mixed as logits.

Each context of a decision has counted zeros and ones, which give a probability. The logits of all
contexts are mixed with weights learned online (Mattern 2012, "Mixing strategies in data
compression"; PAQ's mixer), here for a batch of decisions at once and with a diagonal Newton step.

The arithmetic is the same on every machine. Numbers are integers, also where floats hold them, and
stay below 2^53, so that sums are exact in any order. All operations are those that IEEE 754 rounds
correctly. The two tables of logarithms and exponentials hold integers, rounded from values far from
a rounding boundary.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from swsmix.codec.stream import ONE, Array, Coder
from swsmix.tables.backends import is_compiled

LOGIT_SCALE = 256
_MAX_LOGIT = 2840
_MAX_STEP = 6000  # what a Newton step may add to a mixing weight, in units of 2^-16
_DECAY = 32  # steps after which the curvature has forgotten a decision


def _logit_table() -> Array:
    p = np.arange(ONE + 1).clip(1, ONE - 1)
    table: Array = np.rint(LOGIT_SCALE * np.log(p / (ONE - p)))
    return table


def _probability_table() -> Array:
    logit = np.arange(-_MAX_LOGIT, _MAX_LOGIT + 1) / LOGIT_SCALE
    table: Array = np.rint(ONE / (1.0 + np.exp(-logit))).clip(1, ONE - 1).astype(np.int64)
    return table


# Probability -> its logit (float, for the matrix products), and logit -> probability.
LOGIT = _logit_table()
PROBABILITY = _probability_table()


@functools.cache
def numba_mixing() -> Any:
    """Numba's loops (`codec.numba_mixing`); numba is there."""
    return importlib.import_module("swsmix.codec.numba_mixing")


class DecisionModel:
    """The model of one kind of decision, which learns from each decision that it codes.

    Args:
        bases: number of values of the base context, whose probability the others start from.
        sizes: number of values of each other context.
        inputs: initial mixing weights of the logits that are given directly.
        sets: number of values of each context that chooses mixing weights.
        prior: how much the base probability counts in a context, in quarters of a decision.
        limit: counts above it are halved.
        rate: the size of the Newton steps.
        first: initial mixing weight of the base context and of each other one.
    """

    def __init__(
        self,
        bases: int,
        sizes: list[int],
        inputs: list[float],
        sets: list[int],
        *,
        prior: int = 2,
        limit: int = 255,
        rate: float = 0.25,
        first: float = 0.05,
    ) -> None:
        self.offset = bases + np.cumsum([0, *sizes[:-1]])[:, None] if sizes else np.zeros((0, 1))
        total = bases + sum(sizes)
        self.bases = bases
        self.ones = np.zeros(total)
        self.seen = np.zeros(total)
        self.prior = prior
        self.limit = limit
        self.rate = np.floor(rate * (1 << 22))
        of_contexts = [first] * len(sizes) + [0.0] * len(sizes)
        start = np.floor(np.array([first, *inputs, *of_contexts]) * (1 << 16))
        self.least = float(1 << 34)
        self.weight = [np.tile(start, (n, 1)) for n in sets]
        self.curvature = [np.full((n, len(start)), self.least) for n in sets]
        self._loops: Any = numba_mixing() if is_compiled() else None
        self._weights, self._curvatures = tuple(self.weight), tuple(self.curvature)

    def code(
        self,
        coder: Coder,
        base: Array,
        contexts: Array,
        inputs: Array,
        pick: Array,
        bits: Array | None,
    ) -> tuple[Array, Array]:
        """Code a batch of decisions and learn from it.

        Args:
            coder: the encoder or decoder.
            base: the base context of each (n,).
            contexts: the other contexts (m, n).
            inputs: logits given directly (d, n), in units of 1 / LOGIT_SCALE.
            pick: for each group of weight sets, the set of each decision (g, n).
            bits: the decisions (n,), or None to read them.

        Returns:
            The decisions and the probabilities of a one, both int64.
        """
        if not base.shape[0]:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        place = contexts + self.offset
        if self._loops is not None:
            inputs = np.ascontiguousarray(inputs, np.float64)
            return self._code_compiled(coder, base, place, inputs, np.ascontiguousarray(pick), bits)
        logits = self._logits(base, place, inputs)
        lanes = np.arange(base.shape[0])
        outputs = [
            _within(np.floor((weight @ logits)[chosen, lanes] / (1 << 16)), _MAX_LOGIT)
            for weight, chosen in zip(self.weight, pick, strict=True)
        ]
        mixed = np.floor(sum(outputs) / len(outputs)).astype(np.int64)
        probability = PROBABILITY[mixed + _MAX_LOGIT]
        bits = coder.bits(probability, bits).astype(np.int64)
        self._adapt_weights_(logits, outputs, pick, bits)
        self._count_(np.concatenate([base[None], place]), bits != 0)
        return bits, probability

    def _code_compiled(
        self,
        coder: Coder,
        base: Array,
        place: Array,
        inputs: Array,
        pick: Array,
        bits: Array | None,
    ) -> tuple[Array, Array]:
        """The same, in numba's loops."""
        loops = self._loops
        logits, outputs, probability = loops.predict(
            self.ones, self.seen, base, place, inputs, self._weights, pick,
            self.prior, float(ONE), LOGIT, PROBABILITY, _MAX_LOGIT,
        )  # fmt: skip
        bits = coder.bits(probability, bits).astype(np.int64)
        loops.adapt_(
            self._weights, self._curvatures, pick, logits, outputs, bits, self.rate, self.least,
            _DECAY, _MAX_STEP, PROBABILITY, _MAX_LOGIT,
        )  # fmt: skip
        loops.count_(self.ones, self.seen, base, place, bits, self.limit, self.bases)
        return bits, probability

    def _logits(self, base: Array, place: Array, inputs: Array) -> Array:
        """What is mixed: the base's logit, the direct ones, and two per context."""
        before = np.floor((4 * ONE * self.ones[base] + ONE) / (4 * self.seen[base] + 2))
        given = (4 * ONE * self.ones[place] + self.prior * before) / (
            4 * self.seen[place] + self.prior
        )
        of_base, own = LOGIT[before.astype(np.int64)][None], LOGIT[given.astype(np.int64)]
        # What a context adds to the base, once more: the more, the more often it was seen.
        seen = self.seen[place]
        sure = np.floor((own - of_base) * seen / (seen + 8))
        return np.concatenate([of_base, inputs, own, sure])

    def _adapt_weights_(
        self, logits: Array, outputs: list[Array], pick: Array, bits: Array
    ) -> None:
        """A diagonal Newton step of the mixing weights that were used."""
        squares, lanes = logits * logits, np.arange(len(bits))
        for weight, curvature, chosen, output in zip(
            self.weight, self.curvature, pick, outputs, strict=True
        ):
            p = PROBABILITY[output.astype(np.int64) + _MAX_LOGIT]
            error, spread = np.zeros((2, len(weight), len(bits)))
            error[chosen, lanes] = (bits << 16) - p
            spread[chosen, lanes] = (p * (ONE - p)) >> 18
            used = np.flatnonzero(np.bincount(chosen, minlength=len(weight)))
            old = curvature[used]
            curvature[used] = old - np.floor((old - self.least) / _DECAY) + spread[used] @ squares.T
            step = np.floor((error[used] @ logits.T) * self.rate / curvature[used])
            weight[used] += _within(step, _MAX_STEP)

    def _count_(self, place: Array, ones: Array) -> None:
        """Add the decisions to the counts of their contexts."""
        size = len(self.seen)
        if place.size < size:
            np.add.at(self.seen, place, 1.0)
            np.add.at(self.ones, place[:, ones], 1.0)
            full = place[1:][self.seen[place[1:]] > self.limit]
            full = np.unique(full) if len(full) else full
        else:  # a pass over the whole table costs less
            self.seen += np.bincount(place.reshape(-1), minlength=size)
            self.ones += np.bincount(place[:, ones].reshape(-1), minlength=size)
            full = self.bases + np.flatnonzero(self.seen[self.bases :] > self.limit)
        self.seen[full] = np.ceil(self.seen[full] / 2)
        self.ones[full] = np.ceil(self.ones[full] / 2)


def _within(values: Array, most: int) -> Array:
    # np.clip would take three times as long on short arrays.
    inside: Array = np.minimum(np.maximum(values, -most), most)
    return inside


def logit_of_ratio(part: Array, whole: Array | int, prior: Array | int, weight: int) -> Array:
    """The logit of (part + weight * prior) / (whole + weight), prior being over `ONE`.

    Logits are in units of 1 / LOGIT_SCALE.
    """
    p = (part * ONE + weight * prior) // (whole + weight)
    logits: Array = LOGIT[np.minimum(np.maximum(p, 1), ONE - 1)]
    return logits


def log_density(part: Array, whole: Array | int, levels: int) -> Array:
    """The class of a density, below `levels`: -log2(part / whole), regularised, in half octaves."""
    ratio = np.maximum(((5 * part + 2) * 1024) // (5 * whole + 4), 1)
    length = np.frexp(ratio.astype(np.float64))[1].astype(np.int64)
    half = (ratio >> np.maximum(length - 2, 0)) & 1
    density: Array = np.minimum(np.maximum(2 * (11 - length) + 1 - half, 0), levels - 1)
    return density
