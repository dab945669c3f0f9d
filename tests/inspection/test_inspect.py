"""Inspect: what it says of a checkpoint is true."""

import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch

from swsmix import codec, initial_mixture, load_run
from swsmix._histogram import chunks
from swsmix.compression.codebooks import cluster
from swsmix.compression.snap import assign, bits_per_weight
from swsmix.inspection.checkpoints import read
from swsmix.inspection.inspect import inspect


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


def test_the_codebooks_of_a_compressed_file_are_its_mixtures(tmp_path):
    values = {
        # On no coarse grid: such weights may cost less value by value.
        "a.weight": torch.tensor([-0.513, 0.0, 0.2771]),
        "b.weight": torch.linspace(-3.0, 3.0, 8)[1:] ** 3,
        "c.weight": torch.tensor([0.0, 0.5123]),
    }
    generator = torch.Generator().manual_seed(0)
    state = {
        name: own[torch.randint(len(own), (60, 20), generator=generator)]
        for name, own in values.items()
    }
    state |= {"bias": torch.tensor([0.5, 1.5]).repeat(30), "d.weight": state["a.weight"] + 0.0}
    (tmp_path / "net.sws").write_bytes(codec.encode(state))
    found = inspect(tmp_path / "net.sws")
    assert found.kind == "compressed file of swsmix"
    assert [group.name for group in found.groups] == ["codebook 1", "b.weight", "c.weight"]
    assert [layer.name for layer in found.groups[0].layers] == ["a.weight", "d.weight"]
    for layer, group in found.layers:
        own = values[group.layers[0].name]
        assert not group.fitted and group.origin == "the file's codebook"
        assert torch.equal(group.mixture.mean, own.double())
        counted = [(state[layer.name] == value).sum().item() for value in own]
        assert layer.claimed.tolist() == counted and layer.num_clusters == len(own)
        entropy = codec.sizes(codec.encode({layer.name: state[layer.name]}))[
            layer.name
        ].entropy_bits
        assert layer.bits_per_weight == pytest.approx(entropy / layer.size)
    assert found.left_out == {"bias": "1 dimension, fewer than 2"}
    assert len(inspect(tmp_path / "net.sws", refit=True).groups) == 1


def test_a_run_compressed_has_the_clusters_of_the_run(run_folder, tmp_path):
    run = load_run(run_folder)
    (mixture,) = run.mixtures.values()
    state = dict(run.network)
    state["2.weight"] = mixture.mean.float()[assign(mixture, state["2.weight"])]
    (tmp_path / "run.sws").write_bytes(codec.encode(state))
    found = inspect(tmp_path / "run.sws").layers
    (layer,) = (layer for layer, group in found if not group.fitted)
    own = inspect(run_folder).layers[0][0]
    assert layer.name == own.name == "2.weight"
    assert sorted(layer.claimed[layer.claimed > 0]) == sorted(own.claimed[own.claimed > 0])
    assert layer.bits_per_weight == pytest.approx(own.bits_per_weight)


def test_weights_beside_codebooks_get_a_mixture_of_their_own(tmp_path):
    state = {"few": torch.tensor([0.0, 1.0]).repeat(20, 10), "many": torch.randn(50, 20)}
    (tmp_path / "net.sws").write_bytes(codec.encode(state))
    few, many = inspect(tmp_path / "net.sws", num_components=3).groups
    assert (few.fitted, many.fitted) == (False, True)
    assert many.name == "stored value by value" and many.mixture.num_components == 3


def test_what_is_for_fitted_mixtures_is_refused_where_none_is_fitted(run_folder, tmp_path):
    for given in ({"num_components": 5}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(given))}: .*has its own.*--refit"):
            inspect(run_folder, **given)
        assert inspect(run_folder, refit=True, **given).groups[0].fitted


def test_weights_without_values_or_beyond_float32_are_left_out(tmp_path):
    tensors = {
        "w": torch.randn(9, 9),
        "meta": torch.ones(3, 3, device="meta"),
        "huge": torch.full((3, 3), 1e200, dtype=torch.float64),
    }
    torch.save(tensors, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    assert [layer.name for layer, _ in found.layers] == ["w"]
    assert found.left_out == {"huge": "its weights reach 1e+200, beyond float32"}
    assert read(tmp_path / "a.pt").left_out == {"meta": "on the meta device, so without values"}
    torch.save({"meta": tensors["meta"]}, tmp_path / "meta.pt")
    with pytest.raises(ValueError, match="meta: on the meta device, so without values"):
        inspect(tmp_path / "meta.pt")


def test_eight_bit_floats_are_named_since_their_values_need_scales(tmp_path):
    eight = torch.randn(40, 100).to(torch.float8_e4m3fn)
    torch.save({"w": torch.randn(9, 9), "eight": eight}, tmp_path / "a.pt")
    assert [layer.name for layer, _ in inspect(tmp_path / "a.pt").layers] == ["w"]
    assert list(read(tmp_path / "a.pt").left_out) == ["eight"]
    torch.save({"eight": eight}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"eight: torch\.float8_e4m3fn weights, which need"):
        inspect(tmp_path / "b.pt")


def test_a_folder_has_its_name_as_title_from_inside_too(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    assert inspect(".").title == "run: run folder of swsmix, epoch 3"


PEAKS = """
import sys
from swsmix.cli import app
for name in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # the highest from here on
    app(["inspect", name, "--html", "-q"], standalone_mode=False)
    (peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(1024 * int(peak.split()[1]))
"""


def four_tensors(scale):
    """25 million weights in four tensors, divided by the square of `scale`."""
    shape = (2500 // scale, 2500 // scale)
    return {
        f"fc{i}.weight": cases.weights(shape[0] * shape[1]).float().view(shape) for i in range(4)
    }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_a_larger_file_takes_about_twice_of_what_it_is_larger_at_most(tmp_path):
    """The highest memory for two files whose tensors have the same names, and differ in size.

    The files are mapped: their pages count. What does not count is what both need: the libraries,
    and the figures, about 50 MB for the ResNet-50's 161 tensors however few their weights are.
    """
    paths = []
    four, resnet = four_tensors, cases.resnet50
    # The first one brings what is imported, compiled and kept.
    for network, scale in ((four, 8), (four, 8), (four, 2), (resnet, 8), (resnet, 2)):
        paths.append(tmp_path / f"{len(paths)}.pt")
        torch.save(network(scale=scale), paths[-1])
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *(path.name for path in paths)], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = [*map(int, done.stdout.split())]
    for small, large in ((1, 2), (3, 4)):
        more = paths[large].stat().st_size - paths[small].stat().st_size
        share = (peaks[large] - peaks[small]) / more
        print(f"{share:.2f} bytes for each that the file is larger")  # pytest -s
        assert more > 20e6 and share < 2.2  # 0.3 and 1.8
        report = tmp_path / f"{paths[large].name}-inspect" / "report.html"
        assert report.stat().st_size < 3e6


# -- what is counted --------------------------------------------------------------------------


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


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
    assert ("on a sample of 100,000 and then on all" in how) == sampled
    loss, best = (-m.double().log_prob(w[:99_999].double()).mean() for m in (found, true))
    assert loss < best + 1e-3
    start = initial_mixture(w, len(true.mean), method="kmeans")
    assert loss < -start.double().log_prob(w[:99_999].double()).mean() - 1e-3


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-30, 2.0**30, 2.0**100])
def test_weights_of_any_scale_are_clustered_alike(scale):
    w = cases.weights(3000).float()
    found, _ = cluster([w], 5)
    scaled, _ = cluster([scale * w], 5)
    for name in ("mean", "std"):
        expected = getattr(found, name).double()
        torch.testing.assert_close(
            getattr(scaled, name).double() / scale, expected, rtol=1e-3, atol=1e-4
        )
    torch.testing.assert_close(scaled.mixing.double(), found.mixing.double(), rtol=1e-3, atol=1e-4)


def test_one_enormous_weight_among_very_many_does_no_harm():
    w = torch.cat([cases.weights(250_000).float(), torch.tensor([1e30])])
    mixture, _ = cluster([w], 3)
    assert mixture.mean.isfinite().all() and mixture.mean.max() > 1e20


def test_clusters_far_from_zero_and_near_each_other_are_found():
    generator = torch.Generator().manual_seed(0)
    middle = torch.tensor([-2.0, 0.0, 2.0])[torch.randint(3, (6000,), generator=generator)]
    w = 1e4 + middle.double() + 0.1 * torch.randn(6000, generator=generator)
    mixture, _ = cluster([w], 3)
    assert (mixture.mean - 1e4).sort().values.tolist() == pytest.approx([-2, 0, 2], abs=0.07)


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


def test_views_of_one_tensor_and_masks_are_counted_once(tmp_path):
    w = torch.randn(12, 10)
    state = {"head": w[:5], "w": w, "t": w.t(), "flat": w.reshape(10, 12), "gaps": w[:, :3]}
    masked = {"c.weight_orig": torch.randn(4, 4), "c.weight_mask": torch.ones(4, 4)}
    torch.save(state | masked, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    assert {tensor.name for tensor, _ in found.layers} == {"w", "c.weight_orig"}
    assert found.left_out["head"] == "a part of w" and found.left_out["t"].startswith("the same")
