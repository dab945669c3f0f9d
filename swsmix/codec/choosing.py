"""Which model codes a tensor's component numbers in the fewest bits; contexts by their real gain.

A tensor of one stream is coded by each model that may pay, and the smallest coding is taken. For a
large one that would take too long: windows of a few blocks tell, by their later half, once the
models have learned. Each block then takes the smaller of its codings, so that contexts never cost.
"""

from __future__ import annotations

import numpy as np

from swsmix.codec import scans
from swsmix.codec.budget import ContextBudget
from swsmix.codec.index import (
    CONTEXTS,
    MAX_VALUES,
    IndexModel,
    Numbers,
    code_contexts,
    code_zero_order,
)
from swsmix.codec.scans import ScanChoice
from swsmix.codec.stream import Array, StreamEncoder, counted, entropy_bits

_MIN_WEIGHTS = 256  # fewer never pay for context models
_TRIAL = 1 << 16  # weights, from the middle, on which scans are tried
_TRIAL_OF_BLOCK = 1 << 17
_TRY_ALL = 1 << 14  # up to so many weights, every scan is tried, whatever the first one saves
# The share of the bits that context models must save: they take a microsecond or two per weight,
# and as much again for each decision about a value that is not the commonest.
_MIN_SAVING = 0.01
# What a window's later half must promise for a dense tensor to be coded whole: models learn on.
_PROMISE = 0.004
# What a stride must save more on a part: the distance found may be chance.
_DOUBT = 0.005

Coded = tuple[IndexModel, StreamEncoder]


def code_smallest(index: Array, numbers: Numbers, budget: ContextBudget) -> Coded:
    """Code component numbers by the model that makes them smallest.

    Args:
        index: the numbers, row-major.
        numbers: what is known of them.
        budget: what context models may still spend.
    """
    model, best = code_zero_order(index, numbers)
    if numbers.num_values > MAX_VALUES or len(index) < _MIN_WEIGHTS:
        return model, best
    common = int(counted(index, numbers.num_values).argmax())
    for choice, coded in _choose_scans(index, numbers, common, budget):
        found = coded or _coded(index, numbers, IndexModel(CONTEXTS, common, choice), budget)
        if found is None:
            break
        most = best.cost if model.number == CONTEXTS else (1 - _MIN_SAVING) * best.cost - 24
        if found.cost < most:
            model, best = IndexModel(CONTEXTS, common, choice), found
    return model, best


def most_decisions(index: Array, numbers: Numbers, model: IndexModel) -> int:
    """What coding by context models spends at most, see `ContextBudget`."""
    others = len(index) - int(np.count_nonzero(index == model.common))
    # Is it the commonest value, on which side of it, and which there.
    decisions = len(index) + others * numbers.num_values.bit_length()
    return decisions + ContextBudget.STEP * scans.scans_of(numbers.shape)[model.choice.kind][0]


def _coded(
    index: Array, numbers: Numbers, model: IndexModel, budget: ContextBudget
) -> StreamEncoder | None:
    """The whole by context models, if the budget allows it."""
    if most_decisions(index, numbers, model) > budget.left:
        return None
    stream = StreamEncoder()
    code_contexts(stream, model, numbers, index)
    budget.spend(stream, scans.scans_of(numbers.shape)[model.choice.kind][0])
    return stream


def choose_for_blocks(
    blocks: list[tuple[Array, Numbers]], common: int, budget: ContextBudget
) -> ScanChoice | None:
    """The scan for the blocks of a large tensor; None if context models save too little.

    Every scan is tried on a window of the middle block, and the best one on the first and the last
    block too.
    """
    index, numbers = blocks[len(blocks) // 2]
    if numbers.num_values > MAX_VALUES or len(index) < _MIN_WEIGHTS:
        return None
    trials = _try_scans(index, numbers, common, budget, _is_even(index, numbers, common))
    if trials is None:
        return None
    gains = {choice: gain for choice, (gain, _) in trials.items()}
    best = max(gains, key=lambda choice: (gains[choice], choice))
    found = [gains[best]]
    for index, numbers in (blocks[0], blocks[-1])[: len(blocks) - 1]:
        if best.kind in scans.scans_of(numbers.shape) and budget.left > 0:
            found.append(_try(index, numbers, common, best, _TRIAL_OF_BLOCK, budget)[0])
    return best if sum(found) / len(found) > _MIN_SAVING else None


def _choose_scans(
    index: Array, numbers: Numbers, common: int, budget: ContextBudget
) -> list[tuple[ScanChoice, StreamEncoder | None]]:
    """The scans and strides to code the whole tensor with: up to two.

    They are the one that does best on the weights in the middle, and the best of those whose lanes
    start in order, about which a part tells nothing. An even tensor has none if the quickest scan
    saves nothing there. Of an uneven sparse tensor the middle does not tell: its pruned rows may
    lie elsewhere. Where the middle is the whole, the coding comes with its choice.
    """
    in_order = kinds_in_order(index, numbers, common)
    even = not in_order and _is_even(index, numbers, common)
    dense = 2 * np.count_nonzero(index != common) > len(index)
    trials = _try_scans(index, numbers, common, budget, even)
    if trials is None:
        return []
    gains = {choice: gain for choice, (gain, _) in trials.items()}
    ranked = sorted(gains, key=lambda choice: (-gains[choice], choice))
    chosen = ranked[:1]
    chosen += [c._replace(starts_in_order=True) for c in ranked if c.kind in in_order][:1]
    if len(index) > _TRIAL and (even or dense) and gains[ranked[0]] < _PROMISE:
        return []
    whole = {choice: stream for choice, (_, stream) in trials.items()}
    return [(choice, whole.get(choice)) for choice in chosen]


def kinds_in_order(index: Array, numbers: Numbers, common: int) -> set[int]:
    """The scans whose lanes start in order."""
    shape = numbers.shape
    return {
        kind
        for kind in scans.scans_of(shape)
        if scans.start_in_order(scans.to_matrix(index, kind, shape, common) != common)
    }


def _is_even(index: Array, numbers: Numbers, common: int) -> bool:
    rows = numbers.shape[0] if numbers.shape else 1
    return not scans.is_uneven((index != common).reshape(rows, -1))


def _try_scans(
    index: Array, numbers: Numbers, common: int, budget: ContextBudget, even: bool
) -> dict[ScanChoice, tuple[float, StreamEncoder | None]] | None:
    """What each scan and stride saves on the weights in the middle, and its coding of the whole.

    There is a coding only where the middle is the whole. None if the budget is spent, or if the
    first scan of an even tensor saves nothing.
    """
    trials: dict[ScanChoice, tuple[float, StreamEncoder | None]] = {}
    for kind, _ in sorted(scans.scans_of(numbers.shape).items(), key=lambda item: item[1][0]):
        first = len(index) > _TRY_ALL and even and trials
        if first and max(gain for gain, _ in trials.values()) < 0:
            return None
        matrix = scans.to_matrix(index, kind, numbers.shape, common)
        for stride in scans.stride_candidates(matrix != common, kind):
            if budget.left <= 0:
                return None
            choice = ScanChoice(kind, stride)
            trials[choice] = _try(index, numbers, common, choice, _TRIAL, budget)
    return trials


def _try(
    index: Array,
    numbers: Numbers,
    common: int,
    choice: ScanChoice,
    size: int,
    budget: ContextBudget,
) -> tuple[float, StreamEncoder | None]:
    """What a scan saves on `size` weights in the middle, as a share of their entropy.

    Of a part, the later half counts: at first the models have to learn. It is compared with the
    part's own entropy, which may be far from the whole's.
    """
    steps, lanes = scans.scans_of(numbers.shape)[choice.kind]
    window = min(steps, -(-size // lanes))
    begin = (steps - window) // 2
    part = slice(begin, begin + window)
    trial, costs = StreamEncoder(), list[float]()
    code_contexts(trial, IndexModel(CONTEXTS, common, choice), numbers, index, part, costs)
    budget.spend(trial, window)
    matrix = scans.to_matrix(index, choice.kind, numbers.shape, common)[part]
    count = counted(matrix.reshape(-1), numbers.num_values)
    if window == steps:
        entropy = entropy_bits(count)
        return 1 - trial.cost / max(entropy, 1.0), trial
    later = counted(matrix[window // 2 :].reshape(-1), numbers.num_values)
    share = np.maximum(count, 1) / count.sum()
    entropy = max(-float((later * np.log2(share)).sum()), 1.0)
    before = costs[window // 2 - 1] if window > 1 else 0.0
    doubt = _DOUBT if choice.stride > 1 else 0.0
    return 1 - (costs[-1] - before) / entropy - doubt, None
