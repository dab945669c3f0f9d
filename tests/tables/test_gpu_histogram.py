"""The GPU's histogram and cubics, run by Triton's interpreter: what torch's operations give.

The interpreter is chosen before Triton is loaded: `test_tables` runs these in a process of their
own, and a run without the interpreter has none of them.
"""

import os

import pytest
import torch
from tabulated import MIXTURES, weights_of

from swsmix import tables
from swsmix.tables import backends
from swsmix.tables.cell_histogram import CellHistogram

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = ["typical", "wide", "hard", "quantised"]
some_mixtures = pytest.mark.parametrize("name", NAMES)

if INTERPRETED:
    from swsmix.tables import triton_cells, triton_loops

    def case(name):
        """Weights, some of them far out or not finite, and what torch counts."""
        w = weights_of(MIXTURES[name], 20_000)
        w[3], w[-3], w[7] = torch.nan, torch.inf, -1e30
        passes = tables.build(*MIXTURES[name]).passes
        cells = passes.cells
        expected = CellHistogram(cells, len(w))
        with tables.uncompiled():
            passes._count_(expected, w)
        expected.unpack_()
        return w, passes, cells, expected

    def assert_same(found, expected):
        for name in ("count", "first", "second"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name

    @some_mixtures
    def test_counting_gives_the_integers_of_torch(name, monkeypatch):
        monkeypatch.setattr(triton_loops, "PACKED", 9_000)  # several parts
        w, _, cells, expected = case(name)
        found = CellHistogram(cells, len(w))
        triton_loops.count_(found, w)
        assert_same(found, expected)

    @some_mixtures
    def test_one_pass_counts_and_writes_what_two_do(name, monkeypatch):
        monkeypatch.setattr(triton_loops, "PACKED", 9_000)
        w, passes, cells, expected = case(name)
        alone, target = torch.empty_like(w), torch.empty_like(w)
        triton_loops.write_gradient_(passes.mixture, cells, alone, w, None)
        found = CellHistogram(cells, len(w))
        triton_loops.write_gradient_(passes.mixture, cells, target, w, None, found)
        torch.testing.assert_close(target, alone, rtol=0, atol=0, equal_nan=True)
        assert_same(found, expected)

    @some_mixtures
    def test_values_and_moments_are_those_of_torch(name, monkeypatch):
        w = weights_of(MIXTURES[name], 70_000)[1400:]
        with tables.uncompiled():
            expected = tables.build(*MIXTURES[name]).full(w)
        monkeypatch.setattr(
            backends, "triton_for", lambda *tensors: backends.triton_kernels(tensors[0].device)
        )
        found = tables.build(*MIXTURES[name]).full(w)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-12, atol=0)
        for one, other in zip(found.moments, expected.moments, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)

    @some_mixtures
    def test_the_cubics_are_those_of_torch(name, monkeypatch):
        with tables.uncompiled():
            twin = tables.build(*MIXTURES[name]).passes.cells
            expected = twin.pieces, twin.curvature_pieces
        monkeypatch.setattr(backends, "triton_cells", lambda device: triton_cells)
        cells = tables.build(*MIXTURES[name]).passes.cells
        root = expected[1][:, 0].double().nan_to_num().sqrt()[:, None]
        reach = cells.geometry.width.double()[:, None] ** torch.arange(4)
        for found, other in zip((cells.pieces, cells.curvature_pieces), expected, strict=True):
            assert torch.equal(found.isnan(), other.isnan())
            known = ~other.isnan().any(1, keepdim=True)
            found, other = (torch.where(known, each, 0.0) * reach for each in (found, other))
            # Each term to within a few roundings of the largest.
            most = other.abs().amax(1, keepdim=True).expand_as(other)
            assert (found - other).abs().le(4e-7 * (most + root)).all()
