"""Many weights on several threads: the same to the last bit, and no thread is left behind."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tabulated import MIXTURES, weights_of

from swsmix import tables
from swsmix.tables import backends, threads
from swsmix.tables.cell_histogram import CellHistogram

N = 3 * threads.CHUNK + 77


@pytest.fixture(autouse=True)
def few_weights_are_many(monkeypatch):
    monkeypatch.setattr(threads, "LEAST", 1 << 16)
    for module in ("passes", "numba_loops") if backends.numba_kernels() else ("passes",):
        monkeypatch.setattr(f"swsmix.tables.{module}.least_for", lambda histogram: 0)
    if backends.numba_kernels():
        monkeypatch.setattr("swsmix.tables.numba_loops_16._LEAST", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def all_results(mixture, w):
    """Whatever a table gives, and the moments of weights that may be summed."""
    table = tables.build(*mixture)
    added, moved = torch.full_like(w, 0.25), w + 1e-3
    table.add_gradient_(added, w, 0.5)
    second = torch.rand(w.shape, generator=torch.Generator().manual_seed(1)).to(w.dtype)
    table.proximal_(moved, w, tables.Adaptive(second, 1e-3, 1e-8), 1.0)
    full = table.full(w)
    return [table.gradient(w), added, moved, *full[:2], *full.moments, table.value(w)]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ("typical", "quantised", "sixty-four, hard")),
        *(("hard", dtype) for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_the_results_do_not_depend_on_the_number_of_threads(name, dtype, loops):
    w = weights_of(MIXTURES[name], N)[N // 50 :].to(dtype)
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(all_results(MIXTURES[name], w))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_there_are_as_many_threads_as_torch_had(number):
    torch.set_num_threads(number)
    seen, together = set(), threading.Barrier(number, timeout=30)

    def work(start, stop):
        together.wait()
        seen.add(threading.get_ident())
        assert torch.get_num_threads() == 1 and not torch.is_grad_enabled()
        return stop - start

    with threads.one_thread_for_torch(), threads.one_thread_for_torch(), torch.no_grad():
        sizes = threads.over_ranges(N, work)
    assert len(seen) == len(sizes) == number and sum(sizes) == N
    assert all(size % threads.CHUNK == 0 for size in sizes[:-1])
    assert torch.get_num_threads() == number


def test_few_weights_are_worth_no_thread():
    torch.set_num_threads(3)
    with threads.one_thread_for_torch():
        assert threads.over_ranges(2 * threads.LEAST - 1, lambda *ends: ends) == [
            (0, 2 * threads.LEAST - 1)
        ]
        assert len(threads.over_ranges(N, lambda *ends: ends, least=N // 2)) == 2
        assert threads.over_ranges(0, lambda *ends: ends) == [(0, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["typical", "hard", "quantised"])
def test_one_pass_gives_what_two_give(name, dtype, loops):
    torch.set_num_threads(2)
    w = weights_of(MIXTURES[name], N)[N // 50 :].to(dtype)
    w[5], w[-5] = 1e30, -1e30  # no piece is certified for them
    table = tables.build(*MIXTURES[name])
    full = table.full(w)
    assert torch.equal(full.gradient, table.gradient(w))
    assert torch.equal(full.value, table.value(w))
    assert all(map(torch.equal, full.moments, table.moments(w)))


@pytest.mark.parametrize("name", ["typical", "hard", "quantised", "wide"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_histogram_of_numbas_is_that_of_torch(name, fused, monkeypatch):
    numba_loops = pytest.importorskip("swsmix.tables.numba_loops")
    monkeypatch.setattr(numba_loops, "PACKED", 100_000)
    monkeypatch.setattr("swsmix.tables.cell_histogram.PACKED", 200_000)
    monkeypatch.setattr(numba_loops, "_LEFT", 100)  # of the indices of what is left out
    w, passes = weights_of(MIXTURES[name], N), tables.build(*MIXTURES[name]).passes
    cells = passes._cells_for(w)
    with tables.uncompiled():
        expected = CellHistogram(cells, N)
        passes._count_(expected, w)
        expected.unpack_()
    found = CellHistogram(cells, N)
    if fused:
        gaps = numba_loops.write_gradient_(cells, torch.empty_like(w), w, None, found)
        counts = expected.count.view(len(cells.certified), -1).sum(1)
        assert len(gaps) == int(counts[~cells.certified].sum()) > 0
        assert torch.equal(gaps, cells.gaps(w))
    else:
        numba_loops.count_(found, w)
    for one, other in zip(
        (found.count, found.first, found.second),
        (expected.count, expected.first, expected.second),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert found.count.sum() == N


def test_threads_of_python_that_share_tables_do_not_disturb_each_other(loops):
    torch.set_num_threads(2)
    table = tables.build(*MIXTURES["spiked"])
    weights = [weights_of(MIXTURES["spiked"], N, seed)[N // 50 :] for seed in range(2)]
    alone = [table.full(w) for w in weights]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            for one, other in zip(alone, pool.map(table.full, weights), strict=True):
                assert torch.equal(one.gradient, other.gradient)
                assert torch.equal(one.value, other.value)


def test_an_interrupt_waits_for_the_other_ranges_and_is_raised():
    torch.set_num_threads(3)
    begun, done = threading.Event(), []

    def work(start, stop):
        if start == 0:
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        done.append(start)

    with threads.one_thread_for_torch(), pytest.raises(KeyboardInterrupt):
        threads.over_ranges(N, work)
    assert len(done) == 2 and torch.get_num_threads() == 3


def test_a_fault_in_another_range_is_raised():
    torch.set_num_threads(2)

    def work(start, stop):
        if start:
            raise ValueError("in the second range")

    with threads.one_thread_for_torch(), pytest.raises(ValueError, match="second range"):
        threads.over_ranges(N, work)


def test_weights_of_inference_mode_are_fine(loops):
    torch.set_num_threads(2)
    w, table = weights_of(MIXTURES["typical"], N), tables.build(*MIXTURES["typical"])
    with torch.inference_mode():
        inside = table.gradient(w.clone())
    assert torch.equal(inside, table.gradient(w))


def test_a_proximal_step_at_the_weights_themselves_is_one_at_a_copy(loops):
    w = weights_of(MIXTURES["typical"], N)  # some of them far out, where no piece is certified
    table, one, other = tables.build(*MIXTURES["typical"]), w.clone(), w.clone()
    table.proximal_(one, one, 1e-2, 1.0)
    table.proximal_(other, w, 1e-2, 1.0)
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_is_added_in_16_bits_as_torch_adds_it(dtype):
    pytest.importorskip("numba")
    w = weights_of(MIXTURES["hard"], N)
    w = w.half() if dtype == torch.float16 else w.bfloat16()
    start = torch.randn(N, generator=torch.Generator().manual_seed(2)).to(dtype)
    start[:3] = torch.tensor([torch.inf, torch.nan, 3e38]).to(dtype)
    w[4] = torch.nan
    table, found, expected = tables.build(*MIXTURES["hard"]), start.clone(), start.clone()
    assert backends.numba_for_16(w, found) is not None
    table.add_gradient_(found, w, 0.37)
    with tables.uncompiled():
        table.add_gradient_(expected, w, 0.37)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert torch.equal(found.isnan(), expected.isnan())
    sizes = start.float().abs() + table.gradient(w).float().abs()
    error = (found.float() - expected.float()).abs()
    assert (error <= torch.finfo(dtype).eps * sizes)[found.isfinite()].all()
    same = (found == expected) | found.isnan()  # all but where torch rounds once, and numba twice
    assert same.float().mean() > (0.5 if dtype == torch.float32 else 0.999)


def test_halves_are_rounded_to_even_in_bfloat16():
    loops = pytest.importorskip("swsmix.tables.numba_loops_16")
    target = torch.arange(-4096, 4096, dtype=torch.int32).float().mul(2.0**-7).bfloat16()
    w, slopes = torch.zeros_like(target), torch.full((1 << 16,), 2.0**-8, dtype=torch.float32)
    expected = (target.float() + 3 * slopes[0]).bfloat16()
    loops.write_gradient_(slopes, target, w, 3.0)
    assert torch.equal(target, expected)


ENDING = """
import atexit, os, torch
from swsmix import tables
from swsmix.tables import threads
torch.set_num_threads(2)
threads.LEAST = 1 << 16
w = torch.randn(3 * threads.CHUNK, generator=torch.Generator().manual_seed(0))
table = tables.build(torch.ones(2) / 2, torch.tensor([0.0, 1.0]), torch.ones(2))
expected = table.full(w)
def same(where):
    full = table.full(w)
    print(where, torch.equal(full.gradient, expected.gradient), flush=True)
child = os.fork()
if child == 0:
    same("fork")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
atexit.register(same, "end")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_threads_work_after_a_fork_and_where_python_ends():
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:2] == ["fork True", "end True"], done.stderr


def test_threads_make_the_passes_of_the_context_that_asked():
    torch.set_num_threads(2)
    w, table = weights_of(MIXTURES["typical"], N).double(), tables.build(*MIXTURES["typical"])
    with tables.uncompiled():
        both = table.gradient(w)
        torch.set_num_threads(1)
        assert torch.equal(table.gradient(w), both)
