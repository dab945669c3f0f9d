"""Inspect: what it says of a checkpoint is true."""

import os
import subprocess
import sys
import time

import cases
import pytest
import torch

from swsmix.clustering import cluster
from swsmix.histogram import chunks
from swsmix.inspect import inspect
from swsmix.mixture import GaussianMixture
from swsmix.quantize import assign, bits_per_weight


def test_a_run_has_its_own_mixture_its_history_and_the_tensors_under_its_prior(run_folder):
    for path in (run_folder, run_folder / "final", run_folder / "checkpoint-000003"):
        found = inspect(path)
        (group,) = found.groups
        assert [layer.name for layer in group.layers] == ["2.weight"]
        assert found.left_out["0.weight"] == "not under the prior"
        assert group.origin == "learned in the run" and len(found.history) == 4
        learned = found.history.stacked("all", "mean")[-1]
        torch.testing.assert_close(group.mixture.mean, learned.sort().values)
    again = inspect(run_folder, refit=True)
    assert [layer.name for layer in again.groups[0].layers] == ["0.weight", "2.weight"]
    assert again.groups[0].origin.startswith("fitted here") and again.history is None


def test_tensors_that_are_not_looked_at_have_a_reason(tmp_path):
    w = torch.randn(30, 30)
    bad = w.clone()
    bad[3, :2] = torch.tensor([float("nan"), float("inf")])
    tensors = {
        "w": w, "bad": bad, "tied": w, "index": torch.ones(3, 3, dtype=torch.int8),
        "none": torch.zeros(0, 4), "bias": torch.zeros(4), "half": w.bfloat16(),
        "head": w[:4].clone(), "sparse": torch.eye(4).to_sparse(),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt", exclude=["he*"])
    assert [layer.name for layer, _ in found.layers] == ["w", "half"]
    assert found.left_out == {
        "bad": "2 of its 900 weights are nan or inf",
        "tied": "the same tensor as w",
        "index": "not floating-point (torch.int8)",
        "none": "empty",
        "bias": "1 dimension, fewer than 2",
        "head": "excluded",
        "sparse": "of layout torch.sparse_coo",
    }
    taken = inspect(tmp_path / "a.pt", include=["bi*", "head"], per_tensor=True)
    assert [group.name for group in taken.groups] == ["bias", "head"]


INSPECT = """
from swsmix.cli import app
app(["inspect", "{}.pt", "--html", "-q"], standalone_mode=False)
"""


def cost(code, folder):
    """Peak memory in bytes, seconds of the processor, and seconds, of a Python process."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return 1024 * used.ru_maxrss, used.ru_utime + used.ru_stime, time.monotonic() - began


@pytest.mark.slow
def test_25_million_weights_take_at_most_twice_their_size(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{i}.weight": torch.randn(2500, 2500, generator=generator) for i in range(4)}
    torch.save(tensors, tmp_path / "big.pt")
    size = (tmp_path / "big.pt").stat().st_size
    torch.save({name: t[:100, :100].clone() for name, t in tensors.items()}, tmp_path / "tiny.pt")
    cost(INSPECT.format("tiny"), tmp_path)  # compiles what is compiled once
    base, cpu_base, _ = cost(INSPECT.format("tiny"), tmp_path)
    peak, cpu, wall = cost(INSPECT.format("big"), tmp_path)
    print(f"{(peak - base) / size:.2f} of the file's size above a tiny file's; {cpu:.1f} s of the "
          f"processor, for a tiny file {cpu_base:.1f}; {wall:.1f} s on the clock")  # fmt: skip
    assert (tmp_path / "big.pt-inspect" / "report.html").stat().st_size < 10e6
    assert peak - base < 2 * size


# -- what is counted --------------------------------------------------------------------------


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_are_those_of_a_slow_twin(tmp_path, dtype):
    w = cases.weights(4000).reshape(40, 100)
    w[0] = 0
    w = w.to(dtype)
    torch.save({"a": w[:10], "b": w[10:]}, tmp_path / "a.pt")
    (group,) = inspect(tmp_path / "a.pt", num_components=5).groups
    assert group.size == 4000 and group.counts.sum() == 4000
    assert (group.mixture.mean.diff() >= 0).all()
    for layer, part in zip(group.layers, (w[:10], w[10:]), strict=True):
        index = assign(group.mixture, part.float())
        assert layer.claimed.tolist() == torch.bincount(index.flatten(), minlength=5).tolist()
        assert layer.bits_per_weight == pytest.approx(bits_per_weight(index))
        assert layer.num_clusters == len(index.unique())
        assert layer.nonzero == sum(value != 0 for value in part.flatten().float().tolist())
        assert layer.shares.sum() == pytest.approx(1)
        centres = (group.edges[1:] + group.edges[:-1]) / 2
        assert layer.counts @ centres / layer.size == pytest.approx(
            part.double().mean().item(), abs=group.edges[1] - group.edges[0]
        )


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", ["typical", "spiked"])
def test_the_fitted_mixture_explains_the_weights_as_well_as_the_one_they_are_from(name, sampled):
    true = cases.mixtures()[name]
    size = 400_000 if sampled else 100_000
    w = true.sample(size, generator=torch.Generator().manual_seed(0)).float()
    found, how = cluster([w[:90_000], w[90_000:]], len(true.mean))
    assert ("on a sample of 200,000 and then on all" in how) == sampled
    loss, best = (-m.double().log_prob(w[:99_999].double()).mean() for m in (found, true))
    assert loss < best + 1e-3
    start = GaussianMixture.from_weights(w, len(true.mean), method="kmeans")
    assert loss < -start.double().log_prob(w[:99_999].double()).mean() - 1e-3


def test_weights_of_few_values_get_a_component_for_each():
    values = torch.linspace(-1, 1, 17).double()
    rare = torch.cat([values.repeat(50_000), values[:1].new_tensor([3.0])])
    mixture, how = cluster([rare.float()], 7)
    assert mixture.mean.tolist() == pytest.approx([*values.tolist(), 3.0])
    assert (len(rare) * mixture.mixing).tolist() == pytest.approx([50_000] * 17 + [1])
    assert "each of the 18 values" in how
    assert (assign(mixture, mixture.mean) == torch.arange(18)).all()
    one, _ = cluster([torch.zeros(40)], 7)
    assert one.mean.tolist() == [0.0] and one.std.item() > 0
    single, _ = cluster([torch.tensor([0.3])], 7)
    assert single.num_components == 1
    few, how = cluster([torch.randn(50)], 7)
    assert few.num_components == 7 and "EM" in how


def test_chunks_hold_each_weight_once():
    w = torch.arange(700_001.0)
    assert torch.equal(torch.cat([*chunks([w[:5], w[5:]])]), w)
