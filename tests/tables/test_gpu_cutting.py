"""Tables certified and cut by the GPU's kernels are the processor's.

The laws are run by Triton's interpreter, in a process of their own; see `test_gpu_histogram`. The
compiler for a GPU needs none: that each kernel compiles is tested without the interpreter.
"""

import importlib
import os

import pytest
import torch
from tabulated import MIXTURES, excess, twin, weights_of
from torch.utils._python_dispatch import TorchDispatchMode

from swsmix import tables
from swsmix.tables import backends, taylor
from swsmix.tables.cell_histogram import CellHistogram
from swsmix.tables.cells import PART
from swsmix.tables.cutting import cut
from swsmix.tables.exact import ExactMixture

triton = pytest.importorskip("triton")
triton_cells, triton_certify, triton_cutting, triton_spans, triton_sums = (
    importlib.import_module(f"swsmix.tables.triton_{name}")
    for name in ("cells", "certify", "cutting", "spans", "sums")
)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU = torch.device("cpu")
RANGE = 1e-18, 1e18  # of the stds
NAMES = ["typical", "hard", "quantised", "one", "dead", "sixty-four", "opposed"]


class Operations(TorchDispatchMode):
    """The names of torch's operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def large_tiles(monkeypatch):
    """The interpreter's time is that of the tiles, whatever their size; several are left."""
    monkeypatch.setattr(triton_certify, "_LANES", 256)
    monkeypatch.setattr(triton_certify, "_PROGRAMS", 2)
    monkeypatch.setattr(triton_cutting, "_BLOCK", 4096)
    monkeypatch.setattr(triton_sums, "_LANES", 256)
    monkeypatch.setattr(triton_sums, "_PARTS", 64)


@pytest.fixture
def on_gpu(large_tiles, monkeypatch):
    for name, module in (
        ("triton_cutting", triton_cutting),
        ("triton_certify", triton_certify),
        ("triton_cells", triton_cells),
        ("triton_sums", triton_sums),
    ):
        monkeypatch.setattr(backends, name, lambda device, module=module: module)


if INTERPRETED:

    @pytest.mark.parametrize("name", NAMES)
    def test_the_cells_are_those_of_the_processor(name, large_tiles):
        mixture = ExactMixture(*MIXTURES[name])
        expected = cut(mixture, 1e-5, CPU)
        found = triton_cutting.cut(mixture, 1e-5, *RANGE)
        one, other = expected.intervals, found.intervals
        for field in ("start", "width", "sign"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field
        assert torch.equal(one.rest.isinf(), other.rest.isinf())
        kept = ~one.rest.isinf()
        unit = torch.minimum(one.radius * one.floor, one.size)[kept]  # of the bounds
        for field in ("rest", "taylor", "second"):
            error = (getattr(one, field) - getattr(other, field))[..., kept].abs()
            size = getattr(one, field)[..., kept].abs()
            assert (error <= 1e-12 * size + 1e-10 * unit).all(), field
        for field in ("centre", "radius", "bend", "floor", "size"):
            torch.testing.assert_close(
                getattr(other, field)[kept], getattr(one, field)[kept], rtol=1e-12, atol=0
            )
        torch.testing.assert_close(other.noise[kept], one.noise[kept], rtol=1e-9, atol=1e-13)
        assert (found.fine, found.address.low) == (expected.fine, expected.address.low)
        assert torch.equal(found.address.entries, expected.address.entries)
        for field, place in expected.geometry._asdict().items():
            torch.testing.assert_close(
                getattr(found.geometry, field), place, rtol=0, atol=1e-12, msg=field
            )

    @pytest.mark.parametrize("name", ["typical", "hard", "dead"])
    def test_what_they_give_is_within_their_bounds_which_are_the_processors(name, on_gpu):
        w, mixture = weights_of(MIXTURES[name], 20_000), MIXTURES[name]
        _, exact, curvature, moments = twin(w, *mixture)
        with tables.uncompiled():
            expected = cut(ExactMixture(*mixture), 1e-5, CPU).error
        table = tables.build(*mixture)
        assert table.passes.cells.error == pytest.approx(expected, rel=1e-6)
        assert excess(table.gradient(w), exact, curvature) <= table.error.gradient <= 1e-5
        w, moments = w[400:], twin(w[400:], *mixture)[3]  # without the huge ones
        found = torch.stack([*table.moments(w)])
        assert torch.allclose(found, moments, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("name", ["hard", "sixty-four"])
    def test_the_curvature_is_that_of_the_processor(name, large_tiles):
        mixture = ExactMixture(*MIXTURES[name])
        intervals = cut(mixture, 1e-5, CPU).intervals
        expected = taylor.curvature(mixture, intervals._replace(curved=None))
        kept = ~intervals.rest.isinf()
        for one, other in zip(triton_certify.curvature(mixture, intervals), expected, strict=True):
            error = (one - other)[..., kept].abs()
            assert (error <= 1e-11 * (other[..., kept].abs() + expected[2][kept])).all()

    @pytest.mark.parametrize("name", ["typical", "hard", "dead", "sixty-four"])
    def test_sums_are_those_of_the_processor(name, large_tiles):
        mixture, w = MIXTURES[name], weights_of(MIXTURES[name], 20_000)[400:]
        if name in (strange := ("hard", "dead")):
            w[7] = torch.nan
        passes = tables.build(*mixture).passes
        histogram = CellHistogram(passes.cells, len(w))
        passes._count_(histogram, w)
        value, moments, missing = histogram.sums()
        raw = histogram.count, histogram.first, histogram.second
        found = triton_sums.sums(passes.cells, *raw)
        torch.testing.assert_close(found[0], value, rtol=1e-12, atol=0)
        torch.testing.assert_close(found[1], moments, rtol=1e-9, atol=1e-12)
        assert found[2] == missing == (name in strange)

    @pytest.mark.parametrize("limit", [600, 2000, 2050])
    def test_too_many_intervals_are_none(limit, large_tiles, monkeypatch):
        for module in (triton_certify, triton_spans):
            monkeypatch.setattr(module, "MAX_INTERVALS", limit)
        cells = triton_cutting.cut(ExactMixture(*MIXTURES["hard"]), 1e-5, *RANGE)
        assert (cells is None) == (limit < 2050)

    @pytest.mark.parametrize("std", [9e-19, 2e18])
    def test_stds_out_of_range_have_no_cells(std, large_tiles):
        mixture = torch.tensor([[0.5, 0.5], [0.0, 0.3], [1.0, std]], dtype=torch.float64)
        assert triton_cutting.cut(ExactMixture(*mixture), 1e-5, *RANGE) is None

    @pytest.mark.parametrize("name", ["one", "quantised"])
    def test_the_host_waits_once_however_many_rounds_there_are(name, large_tiles, monkeypatch):
        mixture = ExactMixture(*MIXTURES[name])
        fetched, waits = triton_spans._fetched, []
        monkeypatch.setattr(
            triton_spans, "_fetched", lambda numbers: waits.append(1) or fetched(numbers)
        )
        with Operations() as operations:
            triton_cutting.cut(mixture, 1e-5, *RANGE)
        assert len(waits) == 1
        waiting = {"_local_scalar_dense", "nonzero", "_to_copy", "unique", "masked_select"}
        assert not waiting & {*operations.names} and "sort" in operations.names

else:

    def test_cells_that_are_fetched_from_a_gpu_have_its_bounds_and_sums():
        w = weights_of(MIXTURES["hard"], 20_000)[400:]
        passes = tables.build(*MIXTURES["hard"]).passes
        histogram = CellHistogram(passes.cells, len(w))
        passes._count_(histogram, w)
        bounds, sums = passes.cells.error, histogram.sums()
        histogram.cells = passes.cells._fetched
        torch.testing.assert_close([*histogram.cells.error], [*bounds], rtol=1e-9, atol=0)
        for one, other in zip(histogram.sums(), sums, strict=True):
            torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))

    def test_each_kernel_compiles_for_a_gpu():
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        real, whole = "*fp64", "*i64"
        types = {
            "mixture": real, "mixing": real, "facts": real, "fields": real, "scale": real,
            "centre": real, "radius": real, "rows": real, "out": real, "inner": real, "ulp": real,
            "counts": whole, "order": whole, "numbers": whole, "whole": whole, "owner": whole,
            "certified": "*i1", "taylor": real, "bend": real, "powers": real, "values": real,
            "moments": real,
        }  # fmt: skip
        numbers = {
            "k", "turn", "room", "smallest", "t", "half", "stride", "short", "long", "bits", "fine",
            "used", "spans", "low", "cells",
        }  # fmt: skip
        constants = {"lanes": 8, "size": 16, "narrowest": 1e-18, "widest": 1e18, "finest": 4}
        kernels = [triton_certify._split, triton_certify._curvature]
        kernels += [triton_sums._powers, triton_sums._moments]
        kernels += [triton_spans._join, triton_spans._count]
        of_cells = ("begin", "arrange", "enter", "lay_out")
        kernels += [getattr(triton_cutting, f"_{name}") for name in of_cells]
        for kernel in kernels:
            given = {n: constants[n] for n in kernel.arg_names if n in constants}
            if kernel is triton_cutting._arrange:
                given["rows"] = triton_certify.FIELDS
            if kernel is triton_sums._powers:
                given["bits"] = PART
            own = {}
            if kernel is triton_cutting._lay_out:
                own = {"width": whole}
            elif kernel is triton_sums._powers:
                own = dict.fromkeys(("count", "first", "second", "begins", "width"), whole)
            signature = {
                name: "constexpr" if name in given else own.get(
                    name, types.get(name, "i32" if name in numbers else "*i32"))
                for name in kernel.arg_names
            }  # fmt: skip
            places = {(kernel.arg_names.index(name),): value for name, value in given.items()}
            source = ASTSource(fn=kernel, signature=signature, constexprs=places)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
            assert made.asm["cubin"]
