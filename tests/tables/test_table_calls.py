"""Calls of tables: weights of any type, shape and order, any thread and device, little memory."""

import math
import subprocess
import sys

import pytest
import torch
from tabulated import MIXTURES, twin, weights_of

from swsmix import tables
from swsmix.tables import backends


def test_where_tritons_loops_cannot_be_made_torch_does_without(monkeypatch):
    triton_loops = pytest.importorskip("swsmix.tables.triton_loops")

    def broken(*args):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(triton_loops, "write_gradient_", broken)
    backends.triton_kernels.cache_clear()
    with pytest.warns(UserWarning, match="no C compiler.*the prior is slower"):
        assert backends.triton_kernels(torch.device("cpu")) is None
    backends.triton_kernels.cache_clear()


def test_the_default_device_does_not_matter():
    w = weights_of(MIXTURES["hard"])
    for name in ("typical", "hard"):
        expected = tables.build(*MIXTURES[name]).full(w)
        torch.set_default_device("meta")
        try:
            table = tables.build(*MIXTURES[name])
            found = table.full(w)
            assert table.error.gradient <= 1e-5
            table.proximal_(w.clone(), w, 1e-3, 1.0)
        finally:
            torch.set_default_device(None)
        assert torch.equal(found.gradient, expected.gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["typical", "spiked", "hard"])
def test_16_bit_weights_are_exact(dtype, name):
    mixture = MIXTURES[name]
    w = weights_of(mixture)[1400:].to(dtype)
    value, gradient, _, moments = twin(w, *mixture)
    table = tables.build(*mixture)
    found, exact = table.gradient(w), gradient.float().to(dtype)
    assert bool(((found == exact) | (exact.abs() < 1e-9) & (found.abs() < 1e-9)).all())
    assert torch.allclose(table.value(w), value.sum(), rtol=1e-12)
    assert torch.allclose(torch.stack([*table.moments(w)]), moments, rtol=1e-9, atol=1e-15)
    out = w.clone()
    table.proximal_(out, w, 1e-3, 1.0)
    assert out.dtype == dtype and bool(out.isfinite().all())


@pytest.mark.parametrize("shape", [(0,), (0, 3), ()])
def test_empty_and_scalar_tensors_are_fine(shape):
    table, w = tables.build(*MIXTURES["typical"]), torch.zeros(shape)
    assert table.gradient(w).shape == w.shape
    full = table.full(w)
    assert float(full.moments[0].sum()) == pytest.approx(w.numel())


@pytest.mark.parametrize("n", [30, 300])
def test_memory_order_does_not_matter(n):
    table = tables.build(*MIXTURES["typical"])
    plain = weights_of(MIXTURES["typical"], n * n * 10)[-n * n * 9 :].reshape(n, n, 3, 3)
    exact, value = table.gradient(plain), table.value(plain)
    for w in (
        plain.to(memory_format=torch.channels_last),
        plain.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.cat([plain, plain], 3)[..., ::2].copy_(plain[..., :]),
    ):
        assert torch.equal(w, plain) and not w.is_contiguous()
        assert torch.equal(table.gradient(w), exact)
        assert torch.allclose(table.value(w), value, rtol=1e-12)
        for grad in (torch.ones_like(w), torch.ones(n, n, 3, 3), torch.ones(n, n, 3, 6)[..., ::2]):
            table.add_gradient_(grad, w, 0.5)
            assert torch.allclose(grad, 1 + 0.5 * exact)


def test_small_and_large_calls_agree():
    mixture = MIXTURES["typical"]
    table, w = tables.build(*mixture), weights_of(mixture)
    pieces = torch.cat([table.gradient(part) for part in w.split(1000)])
    scale = pieces.abs() + twin(w, *mixture)[2].sqrt()
    assert bool(((table.gradient(w) - pieces).abs() <= 1e-5 * scale).all())


@pytest.mark.parametrize("n", [100, 60_000])
def test_autocast_changes_nothing(n):
    w, mixture = weights_of(MIXTURES["spiked"])[1400 : 1400 + n], MIXTURES["spiked"]
    plain = tables.build(*mixture).full(w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tables.build(*mixture).full(w)
        loss = tables.neg_log_prior(w, *mixture)
    assert torch.equal(plain.gradient, cast.gradient) and torch.equal(plain.value, cast.value)
    assert loss.dtype == torch.float32 and torch.allclose(loss.double(), plain.value)


def test_the_number_of_threads_is_as_before_even_after_an_error():
    table, before = tables.build(*MIXTURES["typical"]), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        table.full(torch.zeros(100_000))
        tables.neg_log_prior(torch.zeros(10), *MIXTURES["typical"])
        with pytest.raises(ValueError):
            table.value(torch.tensor([math.nan]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_numba_is_optional():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from swsmix import tables\n"
        "mixture = torch.ones(2) / 2, torch.tensor([0.0, 1.0]), torch.ones(2)\n"
        "print(tables.build(*mixture).gradient(torch.full((100_000,), 0.5)).abs().max() < 1e-5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tensor(True)"


MEMORY = """
import sys, torch
from pathlib import Path
from swsmix import tables
if "torch" in sys.argv[1]:
    tables.backends.numba_kernels = lambda: None
torch.set_num_threads(1)
def peak():  # of this process alone: getrusage would count its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
n, k = 8_000_000, 17
w, grad = 0.05 * torch.randn(n), torch.ones(n)
table = tables.build(torch.full((k,), 1 / k), torch.linspace(-1, 1, k), torch.full((k,), 0.05))
def calls(w, grad):
    table.add_gradient_(grad, w, 0.5), table.full(w, out=grad)
    table.moments(w), table.value(w), table.proximal_(grad, w, 0.1, 1.0)
calls(w[:300_000], grad[:300_000])
before = peak()
calls(w, grad)
print((peak() - before) / n)
hold = torch.ones(n)  # 4 bytes per weight, to see that the measure sees them
print((peak() - before) / n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_does_not_grow_with_the_number_of_weights(loops, request):
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, request.node.name],
        capture_output=True,
        text=True,
        check=True,
    )
    extra, with_a_tensor_more = map(float, out.stdout.split())
    assert extra < 0.5  # bytes per weight; one N x K tensor would be 68
    assert with_a_tensor_more > 3.0


def test_threads_that_share_tables_get_what_one_alone_gets():
    from concurrent.futures import ThreadPoolExecutor

    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(200_000, generator=generator) for _ in range(4)]
    shared = tables.build(torch.full((5,), 0.2), torch.linspace(-1, 1, 5), torch.full((5,), 0.1))
    alone = [shared.gradient(w) for w in weights]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(shared.gradient, weights))
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
