"""The steps of `mixing.DecisionModel` for a batch of decisions, as loops compiled by numba.

The numbers are the same to the last bit: integers in floats, and operations that IEEE 754 rounds.
"""

from __future__ import annotations

import numpy as np

from swsmix.tables.numba_compiled import compiled


@compiled
def predict(ones, seen, base, place, inputs, weights, pick, prior, one, logit, probability, shift):
    """The logits that are mixed (n, l), each group's output (g, n), and the probabilities (n,)."""
    n, direct, contexts, groups = base.shape[0], inputs.shape[0], place.shape[0], len(weights)
    logits = np.empty((n, 1 + direct + 2 * contexts))
    outputs = np.empty((groups, n), np.int64)
    mixed = np.empty(n, np.int64)
    most = np.float64(shift)
    for i in range(n):
        row = logits[i]
        b = base[i]
        before = np.floor((4 * one * ones[b] + one) / (4 * seen[b] + 2))
        of_base = logit[np.int64(before)]
        row[0] = of_base
        for j in range(direct):
            row[1 + j] = inputs[j, i]
        for j in range(contexts):
            at = place[j, i]
            given = (4 * one * ones[at] + prior * before) / (4 * seen[at] + prior)
            own = logit[np.int64(given)]
            row[1 + direct + j] = own
            row[1 + direct + contexts + j] = np.floor((own - of_base) * seen[at] / (seen[at] + 8))
        total = 0.0
        for g in range(groups):
            weight = weights[g][pick[g, i]]
            output = 0.0
            for j in range(row.shape[0]):
                output += weight[j] * row[j]
            output = min(max(np.floor(output / 65536), -most), most)
            outputs[g, i] = np.int64(output)
            total += output
        mixed[i] = probability[np.int64(np.floor(total / groups)) + shift]
    return logits, outputs, mixed


@compiled
def adapt_(weights, curvatures, pick, logits, outputs, bits, rate, least, decay, most, probability,
           shift):  # fmt: skip
    """A diagonal Newton step of the mixing weights that were used."""
    n, length = logits.shape
    for g in range(len(weights)):
        weight, curvature = weights[g], curvatures[g]
        sets = weight.shape[0]
        slope, bend = np.zeros((sets, length)), np.zeros((sets, length))
        used = np.zeros(sets, np.bool_)
        for i in range(n):
            p = probability[outputs[g, i] + shift]
            error = np.float64((bits[i] << 16) - p)
            spread = np.float64((p * (65536 - p)) >> 18)
            u = pick[g, i]
            used[u] = True
            for j in range(length):
                x = logits[i, j]
                slope[u, j] += error * x
                bend[u, j] += spread * (x * x)
        for u in range(sets):
            if not used[u]:
                continue
            for j in range(length):
                old = curvature[u, j]
                now = old - np.floor((old - least) / decay) + bend[u, j]
                curvature[u, j] = now
                step = np.floor(slope[u, j] * rate / now)
                weight[u, j] += min(max(step, -most), most)


@compiled
def count_(ones, seen, base, place, bits, limit, bases):
    """Add the decisions to the counts of their contexts; those above the limit are halved once.

    Of a small table, as `DecisionModel` goes through it, also those that this batch has not seen.
    """
    n, contexts = base.shape[0], place.shape[0]
    full = False
    for i in range(n):
        bit = bits[i]
        seen[base[i]] += 1
        ones[base[i]] += bit
        for j in range(contexts):
            at = place[j, i]
            seen[at] += 1
            ones[at] += bit
            full |= seen[at] > limit
    if n * (contexts + 1) >= seen.shape[0]:
        for at in range(bases, seen.shape[0]):
            if seen[at] > limit:
                seen[at] = np.ceil(seen[at] / 2)
                ones[at] = np.ceil(ones[at] / 2)
        return
    if not full:
        return
    for i in range(n):
        for j in range(contexts):
            at = place[j, i]
            if seen[at] > limit:
                seen[at] = -np.ceil(seen[at] / 2)  # done, and marked so
                ones[at] = np.ceil(ones[at] / 2)
    for i in range(n):
        for j in range(contexts):
            seen[place[j, i]] = abs(seen[place[j, i]])
