"""The compiled certification is the one of torch's operations, and keeps its layout of cells."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tabulated import MIXTURES, every_mixture, twin

from swsmix import tables
from swsmix.tables import cutting, taylor
from swsmix.tables.cells import PART, refinement_for
from swsmix.tables.cutting import cut
from swsmix.tables.exact import ExactMixture
from swsmix.tables.scratch import Scratch
from swsmix.tables.taylor import FACTORIALS, ORDER, certified

pytest.importorskip("numba")
CPU = torch.device("cpu")


def both(mixture, tolerance=1e-5):
    """The cells that compiled loops cut, and those that torch's operations do."""
    compiled = cut(ExactMixture(*mixture), tolerance, CPU)
    with tables.uncompiled():
        return compiled, cut(ExactMixture(*mixture), tolerance, CPU)


def at_middles(cells):
    """f' and a in the middle of each cell, by its cubics (cells, 2)."""
    x = 0.5 * (cells.geometry.width - 1).double()
    powers = torch.stack([x**n for n in range(4)], 1)
    tables_of_both = cells.pieces, cells.curvature_pieces
    return torch.stack([(pieces.double() * powers).sum(1) for pieces in tables_of_both], 1)


def assert_same(compiled, plain):
    assert (compiled is None) == (plain is None)
    if plain is None:
        return
    for name in ("start", "width", "sign", "centre", "radius"):
        assert torch.equal(getattr(compiled.intervals, name), getattr(plain.intervals, name)), name
    for name, one in compiled.geometry._asdict().items():
        other = getattr(plain.geometry, name)
        if one.dtype == torch.float64:
            assert torch.allclose(one, other, rtol=0.0, atol=1e-12), name
        else:
            assert torch.equal(one, other), name
    assert torch.equal(compiled.certified, plain.certified)
    with tables.uncompiled():  # curvature in torch's operations
        expected = plain.error
    for bound, wanted in zip(compiled.error, expected, strict=True):
        assert abs(bound - wanted) <= 1e-9 * wanted
    with tables.uncompiled():
        cubics = at_middles(plain)
    difference = (at_middles(compiled) - cubics)[plain.certified].abs()
    slope, a = cubics[plain.certified].unbind(1)
    assert (difference[:, 0] <= 4e-6 * (slope.abs() + a.abs().sqrt())).all()
    assert (difference[:, 1] <= expected.curvature * a).all()


@every_mixture
def test_compiled_and_uncompiled_cells_are_the_same(mixture):
    compiled, plain = both(mixture)
    assert_same(compiled, plain)
    assert torch.equal(compiled.address.entries, plain.address.entries)
    assert (compiled.address.low, compiled.fine) == (plain.address.low, plain.fine)


@pytest.mark.parametrize(
    ("mixing", "mean", "std"),
    [
        ((0.5, 0.5, 0.0), (0.0, 0.3, 0.1), (0.1, 0.2, 1e-17)),
        ((0.5, 0.5), (0.0, 0.0), (1e-18, 1.0)),
        ((0.5, 0.5), (0.0, 1e3), (1e-17, 1.0)),
    ],
    ids=["dead", "at once", "far apart"],
)
def test_a_component_of_no_matter_does_not_loosen_the_bounds_however_narrow(mixing, mean, std):
    mixture = (torch.tensor(each, dtype=torch.float64) for each in (mixing, mean, std))
    assert_same(*both(tuple(mixture)))


@every_mixture
@pytest.mark.parametrize("low", [cutting.SHORT, cutting.LONG])
def test_a_float_is_found_in_the_cell_of_its_interval_at_its_place(mixture, low, monkeypatch):
    monkeypatch.setattr(cutting, "FEW", 0 if low == cutting.SHORT else 1 << 62)
    cells = cut(ExactMixture(*mixture), 1e-5, CPU)
    assert cells.address.low == low
    intervals, geometry = cells.intervals, cells.geometry
    ends = torch.stack([intervals.start, intervals.start + intervals.width - 1])
    beyond = torch.tensor([*range(int(ends.max()) + 1, 1 << 31, 1 << 20), (1 << 31) - 1])
    inside = ends[0] + (torch.rand(8, len(ends[0]), dtype=torch.float64) * intervals.width).long()
    tiny = torch.randint(int(intervals.width[0]), (500,))  # of the first interval, around zero
    bits = torch.cat([ends.flatten(), inside.flatten(), tiny, beyond])
    bits = torch.cat([bits, bits - (1 << 31)])
    w = bits.int().view(torch.float32)
    cell, number, shift = cells.address.find(w, Scratch(len(w), CPU))
    size = geometry.width[cell]
    assert (size == 1 << shift.long()).all() and ((number >= 0) & (number < size)).all()
    magnitude, outside = bits & ((1 << 31) - 1), (bits & ((1 << 31) - 1)) > int(ends.max())
    assert not geometry.certified[cell[outside]].any()
    owner = geometry.owner[cell]
    start, width = intervals.start[owner], intervals.width[owner]
    found = (start <= magnitude) & (magnitude < start + width)
    assert (found & (intervals.sign[owner] == torch.where(bits < 0, -1, 1)))[~outside].all()
    own = ~outside & (start > 0)
    place = (w.double() - intervals.centre[owner]) / intervals.radius[owner]
    there = geometry.inner[cell] + number * geometry.ulp[cell]
    assert torch.allclose(there[own], place[own], rtol=0.0, atol=1e-9)


@every_mixture
def test_there_are_hardly_more_cells_than_the_intervals_ask_for(mixture):
    """A cell reaches over blocks where it may, and blocks are short where intervals are narrow."""
    found = cutting._intervals(ExactMixture(*mixture), 1e-5)
    needed = refinement_for(found, 1e-5)
    shift = (found.width.double().log2().floor() - needed.parts).clamp(0, PART + needed.fine)
    asked = (found.width >> shift.long())[found.start > 0].sum()  # the tiny share one cell
    cells = cut(ExactMixture(*mixture), 1e-5, CPU)
    assert len(cells.pieces) <= 1.5 * asked


def components(k):
    return st.tuples(
        st.lists(st.floats(0, 12), min_size=k, max_size=k),
        st.lists(st.floats(-1, 1, width=32), min_size=k, max_size=k),
        st.lists(st.floats(-6, 1), min_size=k, max_size=k),
    )


@given(st.integers(1, 17).flatmap(components))
@example(([0.3, 0.3], [-0.5, 0.5], [-3.3, -3.3]))  # rounding is too large between them: no cells
def test_compiled_and_uncompiled_cells_of_any_mixture_are_the_same(parts):
    rarity, mean, log_std = (torch.tensor(each, dtype=torch.float64) for each in parts)
    mixture = (10**-rarity) / (10**-rarity).sum(), mean, 10**log_std
    assert_same(*both(mixture))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("std", [1e-60, 1e-30, 1e30])
def test_extreme_stds_have_finite_bounds_or_no_certified_cells(std, compiled):
    mixture = torch.tensor([[0.5, 0.5], [0.0, 0.3], [1.0, std]], dtype=torch.float64)
    one, other = both(mixture)
    cells = one if compiled else other
    if cells is not None:
        kept = ~cells.intervals.rest.isinf()
        assert all(row[..., kept].isfinite().all() for row in cells.intervals if row is not None)


@pytest.mark.parametrize("name", ["hard", "spiked", "dead"])
def test_a_polynomial_is_within_its_bound_all_over_its_interval(name):
    """Both ways, against the formulas themselves, at the ends and between."""
    mixture = tuple(each.double() for each in MIXTURES[name])
    for loops in both(mixture):
        at = loops.intervals
        for s in (-1.0, -0.5, 0.3, 1.0):
            value, gradient, curvature, _ = twin(at.centre + s * at.radius, *mixture)
            powers = s ** torch.arange(ORDER + 1, dtype=torch.float64)
            error = (powers @ at.taylor - value).abs()
            bound = at.rest / FACTORIALS[ORDER + 1] * abs(s) ** (ORDER + 1)
            near = (value.abs() < 1e3) & (at.start > 0)
            assert (error <= bound + 1e-11 * (1 + value.abs()))[near].all()


@pytest.mark.parametrize("loops", ["compiled", "uncompiled"])
def test_intervals_come_in_order_and_leave_no_gap(loops):
    cells = both(MIXTURES["hard"])[loops == "uncompiled"]
    for sign in (-1, 1):
        mine = cells.intervals.sign == sign
        start, width = cells.intervals.start[mine], cells.intervals.width[mine]
        assert start[0] == 0 and torch.equal(start[1:], (start + width)[:-1])
    assert (cells.intervals.sign.diff() >= 0).all()


def test_the_compiled_exponential_is_exact_to_one_unit_of_the_last_digit():
    numba = pytest.importorskip("numba")
    from swsmix.tables.numba_exp import exp

    compiled = numba.njit(lambda x: exp(x))
    for x in torch.linspace(-708.0, 700.0, 10_001, dtype=torch.float64).tolist():
        assert abs(compiled(x) - math.exp(x)) <= 2.0**-51 * math.exp(x)
    assert compiled(-708.1) == 0.0 == compiled(-math.inf) and math.isnan(compiled(math.nan))


@pytest.mark.parametrize("limit", [100, 2000])
def test_too_many_intervals_are_none(limit, monkeypatch):
    monkeypatch.setattr(taylor, "MAX_INTERVALS", limit)
    with tables.uncompiled():
        assert (cutting._intervals(ExactMixture(*MIXTURES["hard"]), 1e-5) is None) == (limit < 2050)


def test_the_bounds_of_intervals_are_those_that_their_polynomials_were_given():
    mixture = ExactMixture(*MIXTURES["hard"])
    found = cutting._intervals(mixture, 1e-5)
    again = certified(mixture, found.start, found.width, found.sign)
    kept = ~found.rest.isinf()
    for name in ("bend", "second", "floor", "size"):
        torch.testing.assert_close(
            getattr(found, name)[kept], getattr(again, name)[kept], rtol=1e-9, atol=0.0
        )
