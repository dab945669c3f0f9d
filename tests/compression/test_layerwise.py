"""One weight: the values of its dtype, its orientation, and what an embedding's tokens weigh."""

import pytest
import torch
from torch import nn

from swsmix.compression import layerwise, quantize_
from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.layerwise import Piece, by_frequency, plain, rounded, unit_of


def test_values_that_a_dtype_does_not_tell_apart_become_one_with_both_shares():
    book = Codebook(
        torch.tensor([0.0, 1.0, 1.001, 2.0], dtype=torch.float64),
        torch.tensor([1.0, 3.0, 3.0, 2.0], dtype=torch.float64),
        0.1,
    )
    new = rounded(book, torch.bfloat16)
    assert new.values.tolist() == [0.0, 1.0, 2.0]
    assert new.bits.tolist() == [1.0, 2.0, 2.0]


def test_the_unit_of_a_layer_is_the_mean_over_its_weights():
    h = torch.eye(4, dtype=torch.float64)
    ends = ((0, 1), (1, 4))
    pieces = [Piece(slice(*e), s * h, h, h[0], None) for e, s in zip(ends, (1.0, 5.0), strict=True)]
    assert unit_of(pieces) == pytest.approx(4.0)


def test_tokens_weigh_half_of_their_frequency_and_unseen_ones_a_half():
    weight = torch.randn(300, 16)
    count = torch.zeros(300)
    count[100:200], count[200:] = 1.0, 20.0
    found = by_frequency(weight, 0.05, count)
    start = plain(weight, 0.05).book
    for rows, level in ((slice(100), -1.0), (slice(100, 200), -1.0), (slice(200, 300), 1.0)):
        wanted = start._replace(lam=0.05 / 2.0**level).assign(weight[rows])
        assert torch.equal(found.which[rows], wanted)
    error = (found.values - weight).square().mean(1)
    assert error[200:].mean() < 0.95 * error[:100].mean()


def test_a_product_by_columns_is_written_back_by_columns():
    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(24, 10))

        def forward(self, x):
            return x @ self.w

    x = torch.randn(800, 8) @ torch.randn(8, 24)
    report = quantize_(Columns(), x, bits=3.0)
    assert report.layers[0].way == "compensated"
    assert report.error < 0.5 * report.plain_error < 0.1


def test_less_error_that_costs_more_bits_than_it_is_worth_is_not_kept(monkeypatch):
    def exact(weight, pieces, book, damping):
        which = torch.arange(weight.numel()).view(weight.shape)
        values = weight.double().reshape(-1)
        return layerwise.Chosen(Codebook(values, torch.full_like(values, 9.0), book.lam), which,
                                weight)  # fmt: skip

    monkeypatch.setattr(layerwise, "compensated", exact)
    net = nn.Sequential(nn.Linear(24, 40))
    done = quantize_(net, torch.randn(1000, 24), bits=2.0).layers[0]
    assert done.way == "plain"
    assert done.bits < 2.5
