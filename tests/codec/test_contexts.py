"""The context models: portable, as good as they claim, and the same in both directions."""

import time

import cases
import numpy as np
import pytest
import torch
from sparse_weights import hashed, structured

from swsmix.codec import choosing, contents, decode, encode, encoder, scans, sizes
from swsmix.codec.budget import ContextBudget
from swsmix.codec.index import Numbers


def test_context_models_go_well_below_the_zero_order_entropy_where_there_is_structure():
    w = structured()
    size = sizes(encode({"w": w}))["w"]
    assert size.index_bits < 0.75 * size.entropy_bits
    rng = np.random.default_rng(1)
    shuffled = w.reshape(-1)[torch.from_numpy(rng.permutation(w.numel()))].view(w.shape)
    assert sizes(encode({"w": shuffled}))["w"].index_bits > 0.97 * size.entropy_bits


def test_neighbours_in_an_image_are_found_by_their_stride():
    rng = np.random.default_rng(0)
    blobs = np.zeros((40, 12, 12))
    for image in blobs:
        y, x = rng.integers(0, 9, 2)
        image[y : y + 4, x : x + 4] = 1.0
    w = torch.from_numpy(blobs.reshape(40, 144)).float()
    size = sizes(encode({"w": w}))["w"]
    assert size.index_bits < 0.5 * size.entropy_bits


def test_square_matrices_of_every_size_are_scanned_by_rows_and_by_columns():
    for side in (2, 300, 1024, 1025, 1536, 2048, 4096, 1 << 14):
        by_columns, by_rows = (scans.scans_of((side, side))[kind] for kind in (0, 1))
        assert by_columns == by_rows == (side, side)


def test_even_tensors_are_tried_once_and_uneven_ones_in_full(monkeypatch):
    tried = []
    code = choosing.code_contexts

    def watched(coder, model, numbers, index, part=None, costs=None):
        tried.append((model.choice.kind, "part" if part else "whole"))
        if part:  # as many steps as make 2^16 weights, from the middle of the 300
            begin, end = part.start, part.stop
            assert (end - begin - 1) * 300 < 1 << 16 <= (end - begin) * 300
            assert abs(begin + end - 300) <= 1
        return code(coder, model, numbers, index, part, costs)

    monkeypatch.setattr(choosing, "code_contexts", watched)
    generator = torch.Generator().manual_seed(5)
    dense = torch.randint(8, (300, 300), generator=generator).float()
    assert sizes(encode({"w": dense}))["w"].index_bits < 1.02 * 90_000 * 3
    assert len(set(tried)) == 1 and tried[0][1] == "part"
    # Half of the rows are dead.
    pruned = dense * (torch.rand(300, 300, generator=generator) < 0.1)
    pruned[:150] = 0.0
    pruned = pruned[torch.randperm(300, generator=generator)]
    size = sizes(encode({"w": pruned}))["w"]
    assert size.index_bits < 0.95 * size.entropy_bits
    assert "whole" in [extent for _, extent in tried]


def test_neurons_in_order_and_far_neighbours_are_found_though_the_first_scan_saves_nothing():
    generator = torch.Generator().manual_seed(0)
    w = (torch.rand(300, 100, generator=generator) < 0.02).float()
    w = w[w.argmax(1).where(w.any(1), 100).argsort(stable=True)]
    size = sizes(encode({"w": w}))["w"]
    assert size.index_bits < 0.85 * size.entropy_bits
    w = torch.randint(8, (200, 784), generator=generator).float()
    same = torch.rand(200, 784, generator=generator) < 0.7
    for column in range(28, 784):
        w[:, column] = w[:, column - 28].where(same[:, column], w[:, column])
    size = sizes(encode({"w": w}))["w"]
    assert size.index_bits < 0.97 * size.entropy_bits


def test_a_file_with_more_under_context_models_than_may_be_is_refused(monkeypatch):
    data = encode({"w": structured()})
    monkeypatch.setattr(contents, "_MAX_IN_CONTEXT", 4799)
    with pytest.raises(ValueError, match="context models code more weights"):
        decode(data)


def test_the_rows_of_the_layer_before_tell_of_this_ones_columns():
    rates = np.where(np.arange(60) % 3 == 0, 0.8, 0.0)
    first = structured(60, 50, 1, rates)
    second = structured(60, 50, 2, rates).T.contiguous()
    together = sizes(encode({"first": first, "second": second}))["second"].index_bits
    assert together < 0.97 * sizes(encode({"second": second}))["second"].index_bits


def test_the_order_of_neurons_costs_nothing_once_they_are_sorted():
    # log2 60! = 272 bits are all that an order of 60 rows can cost.
    w = structured(60, 80, 3, np.full(60, 0.2))
    first = (w != 0).int().argmax(1)
    assert (w != 0).any(1).all() and len(first.unique()) > 10
    ordered = w[first.argsort(stable=True)]
    one, two = (sizes(encode({"w": each}))["w"].index_bits for each in (w, ordered))
    assert one - 272 < two < one - 100
    assert torch.equal(decode(encode({"w": ordered}))["w"], ordered)


def test_dead_neurons_at_the_end_cost_next_to_nothing():
    w = structured(40, 80, 3, np.full(40, 0.2))
    w = w[(w != 0).int().argmax(1).argsort(stable=True)]
    more = torch.cat([w, torch.zeros(200, 80)])
    one, two = (sizes(encode({"w": each}))["w"].index_bits for each in (w, more))
    assert abs(two - one) < 64


def test_coding_takes_a_minute_at_most(monkeypatch):
    state = {name: structured(seed=seed) for seed, name in enumerate("abc")}
    full = sizes(encode(state))
    budgets = []

    def counted(left):
        budgets.append(ContextBudget(left))
        return budgets[-1]

    monkeypatch.setattr(encoder, "ContextBudget", counted)
    encode({"a": state["a"]})
    # Enough for the first, whose decisions are counted, and not for the next.
    monkeypatch.setattr(encoder, "CONTEXT_BUDGET", encoder.CONTEXT_BUDGET - budgets[0].left)
    limited = sizes(encode(state))
    assert limited["a"].index_bits == full["a"].index_bits < 0.8 * limited["a"].entropy_bits
    assert limited["c"].index_bits > limited["c"].entropy_bits
    back = decode(encode(state))
    assert all(torch.equal(back[name], w) for name, w in state.items())


def test_a_tensor_that_would_exceed_what_is_left_is_not_begun(monkeypatch):
    monkeypatch.setattr(choosing, "_TRIAL", 400)
    spent = []

    class Counted(ContextBudget):
        def spend(self, stream, steps):
            before = self.left
            super().spend(stream, steps)
            spent.append(before - self.left)

    def left_after(begin):
        budget = Counted(begin)
        of_them = Numbers(16, (60, 80), np.zeros(80, np.int64))
        choosing.code_smallest(numbers.reshape(-1), of_them, budget)
        return budget.left

    alive = hashed(60, 80, salt=1) < hashed(60, salt=2)[:, None] ** 2
    numbers = alive * np.floor(16 * hashed(60, 80, salt=3)).astype(np.int64)
    left_after(1 << 30)
    *trials, whole = spent
    assert trials and whole > max(trials) and left_after(sum(trials) + whole - 1) == whole - 1


def test_a_large_tensor_is_coded_by_its_best_scan(monkeypatch):
    monkeypatch.setattr(encoder, "_LARGE", 1000)
    size = sizes(encode({"w": structured()}))["w"]
    assert size.index_bits < 0.75 * size.entropy_bits


def two_sparse_matrices():
    rows = np.random.default_rng(0).random(1024) ** 3
    return {f"w{i}": structured(1024, 1100, i, rows) for i in range(2)}  # two blocks without


def a_dense_resnet_50():
    tensors = cases.resnet50(scale=2)
    return {n: (2 * t / t.std()).round().clamp(-8, 7) if t.ndim > 1 else t
            for n, t in tensors.items() if ".0." in n or "layer" not in n}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", [two_sparse_matrices, a_dense_resnet_50])
def test_millions_of_weights_come_back(make):
    state = make()
    begin = time.process_time()  # of this process: others may be busy
    data = encode(state)
    middle = time.process_time()
    back = decode(data)
    end = time.process_time()
    print(f"{middle - begin:.1f} s to encode, {end - middle:.1f} s to decode")  # pytest -s
    assert all(torch.equal(back[name], w) for name, w in state.items())
