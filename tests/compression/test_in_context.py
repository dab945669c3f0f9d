"""Lengths by classes of rows and columns: what falls, what stays, and what is still met."""

from itertools import pairwise

import pytest
import torch

from swsmix.cli import compress as command
from swsmix.codec import encode, encoder, load_compressed
from swsmix.compression import context_gain, context_trial, rate
from swsmix.compression.codebooks import quantize_state, snapped
from swsmix.compression.context_trial import coded_bits, is_smaller
from swsmix.compression.entropy_constrained import fit
from swsmix.compression.in_context import ClassCells, Classes, ContextBook, quantized
from swsmix.compression.matrices import Matrix
from swsmix.compression.rate import Network
from swsmix.compression.snap import bits_per_weight


def unlike(rows=160, columns=150, *, spread=1.0, seed=0):
    """A matrix whose rows and columns have unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator)
    scale = (spread * torch.randn(rows, 1, generator=generator)).exp()
    return w * scale * (0.3 * torch.randn(1, columns, generator=generator)).exp()


def alike(*shape, heavy=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator)
    return w * torch.randn(shape, generator=generator).exp() if heavy else w


def surveyed(w, lam=0.01, *, zero=False):
    """A tensor's survey, values of order 0, and the cells of its classes."""
    m = Matrix.of("w", w, 1 << 14, zero=zero).in_own_units()
    book = fit(m.weights, lam * m.variance / m.numel, zero=m.zero)
    return m, book, ClassCells(m, w, book)


def loss_of(w, q):
    w = w.double()
    return ((q.values.double() - w).square().sum() / (w - w.mean()).square().sum()).item()


def without(monkeypatch):
    monkeypatch.setattr(rate, "cells_where_it_pays", lambda *a, **k: {})


def quantised(state, *, bits=None, size_bytes=None, loss=None):
    """What `quantize_state` gives, and which tensors have lengths in context."""
    network = Network(state)
    found = network.asked(bits=bits, size_bytes=size_bytes, loss=loss)
    return network.quantized(found), [isinstance(book, ContextBook) for book in found.books]


@pytest.mark.parametrize("lam", [0.5, 0.05, 1e-3])
@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("zero", [False, True])
def test_the_objective_never_rises_by_a_step(lam, spread, zero):
    _, book, cells = surveyed(unlike(spread=spread).double() + 0.1, lam, zero=zero)
    costs = []
    found = cells.fitted(book, costs=costs)
    assert len(costs) >= 4
    assert all(after <= before + 1e-11 * costs[0] for before, after in pairwise(costs))
    # And each kind of step lowers it, from where the lengths of the whole tensor are.
    assert costs[1] < costs[0] and costs[2] < costs[1]
    assert not zero or (found.values == 0.0).any()


def test_from_where_it_ended_another_run_changes_nothing():
    _, book, cells = surveyed(unlike().double(), 0.05)
    found = cells.fitted(book)
    spent = cells.spent(found)
    other = found.bits + 0.3 * torch.randn(found.bits.shape, generator=torch.Generator())
    assert cells.spent(found._replace(bits=other)).in_context != spent.in_context
    error, _, in_context, _ = cells.spent(found)
    assert (error, in_context) == (spent.error, spent.in_context)


@pytest.mark.parametrize("lam", [0.3, 0.02, 1e-4])
def test_the_cells_tell_what_the_weights_will_be(lam):
    """The slow twin counts the weights themselves."""
    w = unlike().double()
    m, book, cells = surveyed(w, lam)
    found = cells.fitted(book)
    spent = cells.spent(found)
    q = quantized(m, w, found)
    error = ((q.values - w) / m.unit).square().sum().item()
    assert spent.error == pytest.approx(error, rel=4e-3)
    assert spent.bits == pytest.approx(bits_per_weight(q.index) * w.numel(), rel=2e-3)
    where = found.classes.rows[:, None] * 8 + found.classes.columns
    each = [bits_per_weight(q.index[where == c]) * (where == c).sum().item() for c in range(96)]
    assert spent.in_context == pytest.approx(sum(each), rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_weight_has_its_cheapest_value(dtype):
    w = unlike(40, 60).to(dtype)
    m, book, cells = surveyed(w, 0.05)
    found = cells.fitted(book)
    q = quantized(m, w, found)
    assert q.codebook.dtype == dtype and len(q.codebook) == len(found.values)
    x, values = w.double() / m.unit, q.codebook.double() / m.unit
    where = found.classes.rows[:, None] * found.classes.of_columns + found.classes.columns
    cost = (x[..., None] - values).square() + found.lam * found.bits[where]
    chosen = cost.gather(2, q.index.long()[..., None])[..., 0]
    assert (chosen <= cost.amin(2) + 1e-6 * found.lam).all()


def test_rows_of_large_weights_are_of_the_highest_class_and_classes_are_of_equal_size():
    w = torch.logspace(2, -2, 24)[:, None] * alike(24, 40)
    m, book, _ = surveyed(w, 1e-3)
    classes = Classes.of(w, m.unit, book)
    assert torch.bincount(classes.rows).tolist() == [2] * 12
    assert torch.bincount(classes.columns).tolist() == [5] * 8
    assert classes.rows[:6].min() > classes.rows[-12:].max()
    assert classes.number == 96 and classes.of_columns == 8


def test_rows_in_another_order_have_the_same_values():
    w, order = unlike(spread=0.3), torch.randperm(160, generator=torch.Generator().manual_seed(1))
    found = []
    for t in (w, w[order]):
        m, book, cells = surveyed(t, 0.05)
        found.append(quantized(m, t, cells.fitted(book)).values)
    assert torch.allclose(found[0][order], found[1], rtol=2e-3)


@pytest.mark.parametrize(("loss", "margin"), [(0.1, 0.015), (0.2, 0.015)])
def test_unlike_rows_make_a_smaller_file_at_the_same_loss(monkeypatch, loss, margin):
    state = {"w": unlike(200, 200, spread=0.8), "b": torch.ones(200)}
    found, uses = quantised(state, loss=loss)
    assert uses == [True]
    after = len(encode(snapped(state, found)))
    reached = loss_of(state["w"], found["w"])
    assert 0.995 * loss < reached < 1.001 * loss
    without(monkeypatch)
    before = len(encode(snapped(state, quantize_state(state, loss=reached))))
    assert after < (1.0 - margin) * before


@pytest.mark.parametrize("shape", [(64, 64), (300, 40), (30, 20, 3, 3), (256, 256)])
@pytest.mark.parametrize("heavy", [False, True])
def test_where_rows_and_columns_are_alike_nothing_changes(monkeypatch, shape, heavy):
    state = {"w": alike(*shape, heavy=heavy)}
    cases = {"loss": 0.01}, {"loss": 0.2}, {"bits": 1.0}
    found = [quantised(state, **asked) for asked in cases]
    without(monkeypatch)
    for asked, (after, uses) in zip(cases, found, strict=True):
        assert uses == [False]
        assert torch.equal(quantize_state(state, **asked)["w"].values, after["w"].values)


def test_a_small_tensor_whose_file_would_grow_keeps_the_lengths_of_the_whole(monkeypatch):
    """Its classes promise a gain, but the coder needs too many weights to find them."""
    generator = torch.Generator().manual_seed(0)
    grew = 0
    for seed in range(2):
        scale = torch.randn(400, 1, generator=generator).exp()
        w = alike(400, 40, seed=seed) * scale * torch.randn(1, 40, generator=generator).exp()
        m, book, cells = surveyed(w, 0.03)
        found = cells.fitted(book)
        q, other = m.quantized(w, book), quantized(m, w, found)
        price = book.lam * m.unit**2
        gain = loss_of(w, q) - loss_of(w, other)
        gain = gain * m.variance * m.unit**2 / price + coded_bits(q) - coded_bits(other)
        assert is_smaller(m, w, book, found) == (gain > 0)
        grew += gain <= 0
    assert grew > 0


@pytest.mark.parametrize(("spread", "is_tried"), [(0.2, False), (0.5, True), (1.0, False)])
def test_the_coder_is_asked_where_the_counts_promise_little(monkeypatch, spread, is_tried):
    tried = []
    monkeypatch.setattr(context_gain, "is_smaller", lambda *a: tried.append(a) or False)
    _, uses = quantised({"w": unlike(200, 200, spread=spread)}, loss=0.05)
    assert bool(tried) == is_tried and uses == [spread == 1.0]


@pytest.mark.parametrize("asked", [{"loss": 0.01}, {"bits": 2.5}])
def test_no_file_grows_whatever_counts_and_trials_promise(monkeypatch, asked):
    """The rows are too short for the coder to learn what each is like before it ends."""
    state = {"w": unlike(8200, 8), "v": alike(80, 80)}
    assert state["w"].numel() > 1 << 16
    monkeypatch.setattr(context_gain, "is_smaller", lambda *a: True)
    found, _ = quantised(state, **asked)
    monkeypatch.setattr(rate, "corrected", lambda *a, **k: None)
    plain, _ = quantised(state, **asked)
    after, before = (len(encode(snapped(state, q))) for q in (found, plain))
    assert after <= before


def test_of_a_large_tensor_the_middle_rows_are_tried(monkeypatch):
    w, tried = unlike(400, 150), []
    m, book, cells = surveyed(w, 0.1)
    found = cells.fitted(book)
    monkeypatch.setattr(context_trial, "MOST_WEIGHTS", 100 * 150 + 70)
    monkeypatch.setattr(context_trial, "coded_bits", lambda q: tried.append(q.values) or 0.0)
    is_smaller(m, w, book, found)
    for q in (m.quantized(w, book), quantized(m, w, found)):
        assert any(torch.equal(t, q.values[150:250]) for t in tried)
    assert {t.shape for t in tried} == {(100, 150)}


@pytest.mark.parametrize(
    ("rows", "saved", "gains"), [(40, 5, False), (40, 15, True), (160, 5, True)]
)
def test_a_part_must_save_a_hundredth(monkeypatch, rows, saved, gains):
    w = unlike()
    m, book, cells = surveyed(w, 0.1)
    before = m.quantized(w, book).values[80 - rows // 2 :][:rows]

    def bits(q):
        return 1e9 - (0.0 if torch.equal(q.values, before) else saved * 1e6)

    monkeypatch.setattr(context_trial, "MOST_WEIGHTS", rows * 150)
    monkeypatch.setattr(context_trial, "coded_bits", bits)
    assert is_smaller(m, w, book, cells.fitted(book)) == gains


@pytest.mark.parametrize("bits", [0.5, 1.5])
def test_the_bits_that_were_asked_for_are_met(bits):
    state = {"w": unlike(), "v": alike(60, 50)}
    found, uses = quantised(state, bits=bits)
    count = sum(bits_per_weight(q.index) * q.index.numel() for q in found.values())
    assert uses == [True, False]
    assert 0.99 * bits <= count / (160 * 150 + 60 * 50) <= 1.002 * bits


@pytest.mark.parametrize("size", [4000])
def test_the_size_that_was_asked_for_is_met_with_less_loss(monkeypatch, size):
    state = {"w": unlike(200, 200, spread=0.8)}
    q = quantize_state(state, size_bytes=size)["w"]
    made = len(encode({"w": q.values}))
    assert 0.98 * size <= made <= size
    without(monkeypatch)
    before = quantize_state(state, size_bytes=made)["w"]
    assert loss_of(state["w"], q) < 0.99 * loss_of(state["w"], before)


def test_exact_zeros_stay_zeros():
    w = unlike()
    keep = torch.rand(160, 1, generator=torch.Generator().manual_seed(2)) ** 0.3
    w = w * (torch.rand(160, 150, generator=torch.Generator().manual_seed(1)) < keep)
    found, uses = quantised({"w": w}, loss=0.1)
    assert uses == [True]
    q = found["w"]
    assert (q.codebook == 0.0).any() and (q.values[w == 0.0] == 0.0).all()


def test_a_zero_stays_where_zeros_are_so_rare_that_its_length_is_not_worth_it():
    w = 0.1 + 0.001 * alike(160, 150)
    w[:80] *= torch.rand(80, 150, generator=torch.Generator().manual_seed(1)) < 0.02
    w[80:, ::60] = 0.0
    m, book, cells = surveyed(w, 0.8)
    q = quantized(m, w, cells.fitted(book))
    assert m.zero and len(q.codebook) == 2 and (q.values[w == 0.0] == 0.0).all()


def test_zeros_stay_zeros_whatever_the_length_of_zero():
    w = unlike(40, 60)
    w[::2, ::3] = 0.0
    m, book, cells = surveyed(w, 0.05, zero=True)
    found = cells.fitted(book)
    dear = found.bits + 1e9 * (found.values == 0.0)
    q = quantized(m, w, found._replace(bits=dear))
    assert m.zero and (q.values[w == 0.0] == 0.0).all() and (q.values[w != 0.0] != 0.0).all()


def test_one_giant_weight_is_not_clipped():
    w = unlike()
    w[3, 5] = 500.0 * w.abs().max()
    m, book, cells = surveyed(w, 1e-6)
    q = quantized(m, w, cells.fitted(book))
    assert q.values[3, 5].item() == pytest.approx(w[3, 5].item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_come_back_in_their_type_and_tied_ones_once(dtype):
    w = unlike().to(dtype)
    state = {"w": w, "tied": w.clone(), "conv": w.view(160, 6, 5, 5)}
    found, uses = quantised(state, loss=0.1)
    assert uses == [True, True]
    assert found["w"] is found["tied"] and found["w"].values.dtype == dtype
    assert found["conv"].index.shape == (160, 6, 5, 5)
    assert loss_of(w, found["w"]) == pytest.approx(0.1, rel=5e-3)
    if dtype.itemsize > 2:
        assert torch.equal(found["w"].codebook.half().to(dtype), found["w"].codebook)


@pytest.mark.parametrize(
    "w",
    [
        torch.full((90, 80), 0.3),
        unlike(1, 9000),
        unlike(9000, 1),
        torch.zeros(0, 9),
        torch.tensor([0.0, 1.0]).repeat(70, 50),
        torch.ones(80, 80).triu() * alike(80, 80),
        torch.zeros(80, 80).index_fill(0, torch.tensor([3]), 1.0) * alike(80, 80),
    ],
    ids=["one value", "one row", "one column", "empty", "ties", "triangle", "one live row"],
)
@pytest.mark.parametrize("asked", [{}, {"loss": 0.2}, {"bits": 0.5}])
def test_odd_matrices(w, asked):
    found = quantize_state({"w": w}, **asked)
    assert list(found) == (["w"] if w.numel() else [])
    for q in found.values():
        assert q.values.shape == w.shape and q.codebook.diff().gt(0).all()
        assert torch.equal(q.codebook[q.index], q.values)


def test_a_tensor_that_no_file_holds_is_no_hindrance():
    odd = torch.sparse_coo_tensor([[0], [1]], [1.0], (5, 5), check_invariants=True)
    state = {"w": unlike(200, 200, spread=0.8), "odd": odd}
    found, uses = quantised(state, loss=0.1)
    assert uses == [True] and list(found) == ["w"]


def test_what_is_found_does_not_depend_on_threads():
    state, found = {"w": unlike()}, []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(quantize_state(state, loss=0.1)["w"])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0].values, q.values) for q in found)


def test_streamed_from_disk_it_is_the_same_file(tmp_path):
    state = {"a": unlike(), "b": torch.ones(7), "c": unlike(90, 120, seed=1).bfloat16()}
    torch.save(state, tmp_path / "net.pt")
    command.compress(tmp_path / "net.pt", tmp_path / "net.sws", loss=0.1, quiet=True)
    found, uses = quantised(state, loss=0.1)
    assert uses == [True, True]
    whole = snapped(state, found)
    back = load_compressed(tmp_path / "net.sws")
    assert all(torch.equal(back[n], t) for n, t in whole.items())


def test_of_a_large_network_only_sparse_tensors_are_looked_at(monkeypatch):
    dense = {"w": unlike(300, 200, spread=0.4)}, 0.03
    sparse = {"w": unlike(seed=1) * (alike(160, 150, seed=2) > 0.7)}, 0.1
    for most, looked_at in ((1 << 25, [True, True]), (100, [False, True])):
        monkeypatch.setattr(encoder, "_MANY", most)
        assert [quantised(w, loss=loss)[1][0] for w, loss in (dense, sparse)] == looked_at


def test_the_trial_sees_what_the_file_will_be():
    w = unlike(300, 200)
    q = quantize_state({"w": w}, loss=0.1)["w"]
    assert 8 * len(encode({"w": q.values})) == pytest.approx(coded_bits(q), rel=0.02)
    assert coded_bits(q) < 0.9 * bits_per_weight(q.index) * w.numel()
