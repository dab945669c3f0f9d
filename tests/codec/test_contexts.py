"""The context models: portable, as good as they claim, and the same in both directions."""

import base64
import hashlib
import math
import os
import subprocess
import sys
import time

import cases
import numpy as np
import pytest
import torch

from swsmix.codec import decode, decoder, encode, encoder, index, mixing, scans, sizes
from swsmix.codec.contexts import SIDES, Scan, code_in_context
from swsmix.codec.header import TableWriter
from swsmix.codec.stream import (
    ONE,
    StreamDecoder,
    StreamEncoder,
    code_adaptively,
    code_integers,
    entropy_bits,
    frequencies,
)


def structured(rows=60, columns=80, seed=0, rates=None):
    """Weights in {-2, -1, 0, 1, 2}, with dense and dead rows and columns and signs by column."""
    rng = np.random.default_rng(seed)
    row = rng.random(rows) ** 4 if rates is None else rates
    column = rng.random(columns) ** 3
    flags = rng.random((rows, columns)) < 2.5 * np.outer(row, column)
    sign = np.where(rng.random((rows, columns)) < 0.9, 1, -1) * rng.choice([-1, 1], columns)
    return torch.from_numpy(flags * sign * rng.integers(1, 3, (rows, columns))).float()


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
    code = index._code_contexts

    def watched(coder, choice, *rest, **part):
        tried.append((choice.kind, "whole" if not part else "part"))
        if part:  # as many steps as make 2^16 weights, from the middle of the 300
            begin, end = part["part"].start, part["part"].stop
            assert (end - begin - 1) * 300 < 1 << 16 <= (end - begin) * 300
            assert abs(begin + end - 300) <= 1
        return code(coder, choice, *rest, **part)

    monkeypatch.setattr(index, "_code_contexts", watched)
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
    monkeypatch.setattr(decoder, "_MAX_IN_CONTEXT", 4799)
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
        budgets.append(index.ContextBudget(left))
        return budgets[-1]

    monkeypatch.setattr(encoder, "ContextBudget", counted)
    encode({"a": state["a"]})
    # Enough for the first, whose decisions are counted, and not for the next.
    monkeypatch.setattr(encoder, "_BUDGET", encoder._BUDGET - budgets[0].left)
    limited = sizes(encode(state))
    assert limited["a"].index_bits == full["a"].index_bits < 0.8 * limited["a"].entropy_bits
    assert limited["c"].index_bits > limited["c"].entropy_bits
    back = decode(encode(state))
    assert all(torch.equal(back[name], w) for name, w in state.items())


def test_a_tensor_that_would_exceed_what_is_left_is_not_begun(monkeypatch):
    monkeypatch.setattr(index, "_TRIAL", 400)
    spent = []

    class Counted(index.ContextBudget):
        def spend(self, stream, steps):
            before = self.left
            super().spend(stream, steps)
            spent.append(before - self.left)

    def left_after(begin):
        budget = Counted(begin)
        arguments = (numbers.reshape(-1), 16, (60, 80), index.RowDensities(), budget)
        index.write_index(TableWriter(), StreamEncoder(), *arguments)
        return budget.left

    alive = hashed(60, 80, salt=1) < hashed(60, salt=2)[:, None] ** 2
    numbers = alive * np.floor(16 * hashed(60, 80, salt=3)).astype(np.int64)
    left_after(1 << 30)
    *trials, whole = spent
    assert trials and whole > max(trials) and left_after(sum(trials) + whole - 1) == whole - 1


def test_a_large_tensor_is_coded_by_its_best_scan(monkeypatch):
    monkeypatch.setattr(index, "_LARGE", 1000)
    size = sizes(encode({"w": structured()}))["w"]
    assert size.index_bits < 0.75 * size.entropy_bits


def test_a_symbol_that_the_table_leaves_out_costs_what_the_coder_takes_for_it():
    stream, symbols = StreamEncoder(), np.ones(4000, np.int64)
    stream.symbols(frequencies(np.array([10, 0])), len(symbols), symbols)
    assert 8 * len(stream.to_bytes()) == pytest.approx(stream.cost, rel=1e-3)


def test_the_cost_that_models_are_chosen_by_is_the_size_of_the_stream():
    rng = np.random.default_rng(0)
    stream = StreamEncoder()
    p = rng.integers(1, ONE, 20_000)
    bits = (rng.integers(0, ONE, 20_000) < p).astype(np.int64)
    stream.bits(p, bits)
    count = np.array([1000, 0, 10, 5000])
    symbols = np.repeat(np.arange(4), count)
    stream.symbols(frequencies(count), len(symbols), symbols)
    data = stream.to_bytes()
    assert abs(8 * len(data) - stream.cost) < 0.001 * stream.cost + 64
    stream = StreamDecoder(data)
    assert np.array_equal(stream.bits(p), bits)
    assert np.array_equal(stream.symbols(frequencies(count), len(symbols)), symbols)
    stream.check_end()


@pytest.mark.parametrize("values", [[], [0], [2**40 - 1, 0, 1, 2, 3], list(range(0, 90_000, 7))])
def test_integers_come_back(values):
    values = np.array(values, np.int64)
    stream = StreamEncoder()
    code_integers(stream, len(values), values)
    assert np.array_equal(code_integers(StreamDecoder(stream.to_bytes()), len(values)), values)


def test_adaptive_coding_comes_near_the_entropy():
    symbols = np.random.default_rng(0).choice(5, 10_000, p=[0.9, 0.05, 0.03, 0.01, 0.01])
    stream = StreamEncoder()
    code_adaptively(stream, 5, len(symbols), symbols)
    assert stream.cost < 1.02 * entropy_bits(np.bincount(symbols)) + 100


def test_frequencies_add_up_and_leave_none_out():
    for count in ([1, 0, 10**9], [1] * 65536, [0, 0], [3]):
        frequency = frequencies(np.array(count))
        assert frequency.sum() == 1 << 22
        assert all(f > 0 for f, c in zip(frequency, count, strict=True) if c)


def test_the_tables_of_logits_are_far_from_every_rounding_boundary():
    # So that no other implementation of log and exp can round an entry differently.
    p = np.arange(1, ONE)
    logit = np.arange(-2840, 2841) / mixing.LOGIT_SCALE
    for exact, table in (
        (mixing.LOGIT_SCALE * np.log(p / (ONE - p)), mixing.LOGIT[1:-1]),
        (ONE / (1.0 + np.exp(-logit)), mixing.PROBABILITY),
    ):
        assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-9
        assert np.abs(exact - table).max() <= 0.51


# Written by the first version 2: files stay readable, whatever changes.
GOLDEN = """
U1dTTQIxAwIZAQEAAhgkBgEAuAC0AIAAAAA0ADgCAwEBAhkCAAABGAoLAQAFc3RlcHMABAAHDNs+SdKoQTc1EfOLOrH3y/Xn
Zsfzb5be0npmsT5Kms+/pjEK46rZ38pe+8TCH6j4ZCGFZUo0kGRRviapRjkL+Qtt/eES11r/tq4ZcGiUIuWSSzwixxfyzMR6
VcGPQTG3Bbh0fCsUhxqXUDYJsQD2KQcJ6aMd
"""


def golden_state():
    i = torch.arange(24)[:, None] * 1.0
    j = torch.arange(36)[None] * 1.0
    w = ((i * j) % 7 == 3) * ((i + 2 * j) % 5 - 2) / 4 * (i > 5)
    return {"fc.weight": w, "fc.bias": (i[:, 0] - 7) / 64, "steps": torch.tensor(12)}


def test_a_file_of_the_first_version_is_read_and_written_as_ever():
    data = base64.b64decode(GOLDEN)
    state = golden_state()
    back = decode(data)
    assert list(back) == list(state) and all(torch.equal(back[n], t) for n, t in state.items())
    assert encode(state) == data


def hashed(*shape, salt):
    """Numbers in [0, 1) by integer arithmetic alone (splitmix64): the same for ever."""
    x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(salt << 32)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(40)).reshape(shape) / 2.0**24


def scanned(steps, lanes, num_values, common, stride, side="", in_order=False):
    """A scan and numbers for it: dense and dead steps and lanes, and values that recur."""
    rate = np.outer(hashed(steps, salt=1) ** 2, hashed(lanes, salt=2) ** 2)
    rows = np.floor(num_values * hashed(steps, lanes, salt=3) ** 2).astype(np.int64)
    rows[hashed(steps, lanes, salt=4) > 2 * rate] = common
    again = hashed(steps, lanes, salt=5) < 0.5
    for step in range(stride, steps):
        rows[step] = np.where(again[step], rows[step - stride], rows[step])
    if in_order:
        flags = rows != common
        first = np.where(flags.any(0), flags.argmax(0), steps)
        rows = rows[:, first.argsort(kind="stable")]
    known = {"step": steps, "lane": lanes}
    sides = [
        np.floor(SIDES * hashed(size, salt=6)).astype(np.int64)
        if side == which
        else np.zeros(0, np.int64)
        for which, size in known.items()
    ]
    if not side:
        sides[1] = np.zeros(lanes, np.int64)
    return Scan(steps, lanes, num_values, common, stride, *sides, in_order), rows


@pytest.mark.parametrize(
    ("digest", "how"),
    [
        ("f59975b9f13bb06a", (60, 64, 5, 0, 1)),
        ("6797ac8f2f5c92db", (60, 65, 40, 17, 12, "step")),
        ("107a33a63b28edff", (70, 30, 300, 299, 28, "lane")),
        ("0d87e7d51014a02b", (50, 70, 9, 4, 3, "step", True)),
        ("0daa65847fe42dc0", (20, 300, 9, 0, 1)),
        ("b8224ac04a5e9001", (50, 20, 2, 1, 1, "", True)),
    ],
)
def test_the_contexts_stay_so_that_files_stay_readable(digest, how):
    # By digests: any other context, weight or rounding reads a file of before as other numbers.
    scan, rows = scanned(*how)
    stream = StreamEncoder()
    code_in_context(stream, scan, rows)
    data = stream.to_bytes()
    assert np.array_equal(code_in_context(StreamDecoder(data), scan, None), rows)
    assert hashlib.sha256(data).hexdigest()[:16] == digest


def test_the_bytes_do_not_depend_on_the_number_of_threads():
    code = (
        "import sys, hashlib; sys.path[:0] = sys.argv[1:]; import torch;"
        "from test_contexts import structured, encode, decode;"
        "w = structured(200, 40); data = encode({'w': w});"
        "assert torch.equal(decode(data)['w'], w);"
        "print(hashlib.sha256(data).hexdigest())"
    )
    here = os.path.dirname(__file__)
    folders = [here, os.path.dirname(here)]  # this module's, and that of `cases`
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    done = subprocess.run(
        [sys.executable, "-c", code, *folders],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data = encode({"w": structured(200, 40)})
    torch.set_num_threads(before)
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest()


def six_sparse_matrices():
    rows = np.random.default_rng(0).random(2048) ** 3
    return {f"w{i}": structured(2048, 2048, i, rows) for i in range(6)}


def a_dense_resnet_50():
    tensors = cases.resnet50(scale=1)
    return {n: (2 * t / t.std()).round().clamp(-8, 7) if t.ndim > 1 else t
            for n, t in tensors.items()}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", [six_sparse_matrices, a_dense_resnet_50])
def test_twenty_five_million_weights_come_back(make):
    state = make()
    begin = time.process_time()  # of this process: others may be busy
    data = encode(state)
    middle = time.process_time()
    back = decode(data)
    end = time.process_time()
    print(f"{middle - begin:.1f} s to encode, {end - middle:.1f} s to decode")  # pytest -s
    assert all(torch.equal(back[name], w) for name, w in state.items())
