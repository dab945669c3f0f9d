"""Comparisons beside the rows: pruning's bytes at an error, shuffled neurons, variants' phases."""

import json
import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from papers.ullrich2017 import ablation, coding, compared, verify, work
from papers.ullrich2017.images import Images
from papers.ullrich2017.settings import Setting
from swsmix.codec import encode, load_compressed
from swsmix.compression import save_compressed
from swsmix.prior import MixturePrior
from swsmix.problems import nets
from swsmix.training.evaluation import evaluate

pairs = st.lists(
    st.tuples(st.floats(0.5, 3.0), st.integers(1000, 20_000)), min_size=2, max_size=8, unique=True
)


@given(pairs, st.floats(0.0, 1.0))
def test_bytes_at_an_error_lie_between_the_points_around_it_and_meet_the_points(points, share):
    best = compared.front(points)
    assert {e for e, _ in best} <= {e for e, _ in points}
    for error, size in best:
        if len(best) > 1:
            assert compared.bytes_at(error, points) == pytest.approx(size)
    (low, most), (high, least) = best[0], best[-1]
    error = low + share * (high - low)
    if low < error < high:
        assert least <= compared.bytes_at(error, points) * (1 + 1e-9) <= most * (1 + 2e-9)
    assert math.isnan(compared.bytes_at(low - 0.1, points))
    assert math.isnan(compared.bytes_at(high + 0.1, points))


def test_half_way_between_two_errors_is_the_geometric_mean_of_their_bytes():
    points = [(1.0, 9000), (2.0, 1000), (1.5, 20_000)]  # the last is beaten
    assert compared.bytes_at(1.5, points) == pytest.approx(3000)


@pytest.mark.parametrize("net", sorted(work.NETS))
def test_shuffled_neurons_give_the_same_answers_from_other_bytes(net):
    x = torch.rand(8, 28, 28, generator=torch.Generator().manual_seed(1))
    model = work.NETS[net](generator=torch.Generator().manual_seed(0))
    state = {name: t.detach().clone() for name, t in model.state_dict().items()}
    before = model(x)
    layers = list(coding.pairs({"kind": "compressed", "net": net}))
    other = coding.shuffled(model, state, layers, torch.Generator().manual_seed(0))
    for layer, _ in layers:
        assert not torch.equal(other[f"{layer}.weight"], state[f"{layer}.weight"])
        assert torch.equal(
            other[f"{layer}.bias"].sort().values, state[f"{layer}.bias"].sort().values
        )
    model.load_state_dict(other)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_a_kept_file_is_measured_by_its_own_bytes_and_another_writer_is_refused(tmp_path):
    net = nets.lenet_300_100(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in net.parameters():  # sparse, of few values
            p.copy_(torch.where(p.abs() > 0.9 * p.abs().max(), p.sign(), 0.0))
        net.fc1.weight[:, :500] = 0.0  # what contexts see
    file = tmp_path / "net-seed0.sws"
    size = save_compressed(file, net.state_dict())
    result = {"kind": "compressed", "net": "lenet-300-100"}
    line = coding.measured(file, result)
    assert line["size_bytes"] == size == file.stat().st_size
    assert line["without_contexts"] == len(encode(net.state_dict(), contexts=False))
    file.write_bytes(encode(net.state_dict(), contexts=False))
    with pytest.raises(RuntimeError, match="if written anew"):
        coding.measured(file, result)


def _network(generator=None):
    layers = nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 2)
    names = "flat", "fc1", "relu", "fc2"
    net = nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return net


def _tiny(tmp_path, monkeypatch, limit):
    """The ablation of a small problem: two classes, a bright stripe."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(384, 28, 28, generator=generator)
    y = torch.randint(2, (384,), generator=generator)
    x[y == 1, 10:14] += 0.5
    halves = (x[:256], y[:256]), (x[256:], y[256:])
    recipe = replace(
        ablation.SETTING.recipe, sparsify_tau=3e-4, quantise_tau=1e-4, sparsify_epochs=10,
        quantise_epochs=5, em_every=4,
    )  # fmt: skip
    monkeypatch.setitem(work.NETS, "tiny", _network)
    monkeypatch.setitem(work.PAIRS, "tiny", (("fc1", "fc2", torch.relu),))
    setting = Setting("ablation", "tiny", recipe=recipe, batch_size=32, limit=limit)
    monkeypatch.setattr(ablation, "SETTING", setting)
    monkeypatch.setattr(ablation, "training_images", lambda seed, subset: halves)
    net = work.network(setting, 0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        work.loss(net(halves[0][0]), halves[0][1]).backward()
        optimizer.step()
    file = work.dense_file(setting, 0, tmp_path)
    file.parent.mkdir()
    save_file(net.state_dict(), file)


@pytest.mark.filterwarnings("ignore::swsmix.diagnosis.PriorWarning")
@pytest.mark.parametrize("name", compared.VARIANTS)
def test_each_variant_spends_up_to_the_limit_and_no_further(name, tmp_path, monkeypatch):
    assert set(compared.VARIANTS) == set(ablation.VARIANTS)
    _tiny(tmp_path, monkeypatch, limit=25.0)
    line = ablation.attempt(name, tmp_path)
    after = line["after_the_phases"]
    assert line["met"] and line["validation_error_percent"] <= 25.0
    assert line["size_bytes"] < after["size_bytes"]
    json.dumps(line)  # it is kept as text


@pytest.mark.filterwarnings("ignore::swsmix.diagnosis.PriorWarning")
def test_a_limit_that_is_missed_is_said(tmp_path, monkeypatch):
    _tiny(tmp_path, monkeypatch, limit=1e-6)
    monkeypatch.setattr(ablation, "evaluate", lambda *_: 50.0)
    assert not ablation.attempt("recipe", tmp_path)["met"]


def test_a_shared_mixture_is_every_tensors():
    net = nets.lenet_300_100(generator=torch.Generator().manual_seed(0))
    prior = MixturePrior(net, num_components=2)
    shared = ablation.ByTensor(prior, ("a", "b"))
    assert shared.mixtures == dict.fromkeys("ab", prior.mixtures["all"])


def test_kept_files_have_the_bytes_and_zeros_of_their_rows_and_verify_builds_the_networks():
    for file in sorted((coding.HERE / "results").glob("*.sws")):
        result = json.loads(file.with_suffix(".json").read_text())
        decoded = load_compressed(file)
        assert file.stat().st_size == result["size_bytes"]
        for name, number in result["nonzero"].items():
            assert int((decoded[name] != 0).sum()) == number
        verify.network(result).load_state_dict(decoded)
        modules = dict(verify.network(result).named_modules())
        assert all(a in modules and b in modules for a, b in coding.pairs(result))


@pytest.mark.filterwarnings("ignore::swsmix.diagnosis.PriorWarning")
@pytest.mark.parametrize(("tau", "points"), [(1.0, 0.5), (6e-3, 30.0)])
def test_phases_above_the_points_are_the_result_and_others_spend_up_to_them(
    tau, points, tmp_path, monkeypatch
):
    _tiny(tmp_path, monkeypatch, limit=None)
    strong = replace(ablation.SETTING.recipe, sparsify_tau=tau)
    setting = replace(ablation.SETTING, recipe=strong, points=points)
    train, validation = ablation.training_images(0, None)
    ends = {}
    for name, each in (("phases", replace(setting, points=None)), ("spent", setting)):
        net = work.network(setting, 0)
        net.load_state_dict(load_file(work.dense_file(setting, 0, tmp_path)))
        start = evaluate(net, work.errors, validation)
        options = {
            "recipe": strong, "run": tmp_path / name, "resume": True, "seed": 0, "include": "*",
            "tau": 1.0, "measure": work.errors, "validation": validation, "progress": False,
        }  # fmt: skip
        done = work.to_limit(net, Images(*train, setting, 0), each, options)
        nonzero = sum(int((j != 0).sum()) for j in done.index.values())
        ends[name] = evaluate(net, work.errors, validation) - start, nonzero
    assert ends["spent"][0] <= max(points, ends["phases"][0]) + 1e-6
    if points < 1.0:
        assert ends["phases"][0] > points  # what the rule is for: no second trial
        assert "sparsify-2" not in done.histories
    else:
        assert ends["phases"][0] < points and ends["spent"][1] < ends["phases"][1]


@pytest.mark.parametrize("net", compared.OURS)
def test_what_pruning_is_compared_with_is_one_result_of_as_long_a_training(net):
    file, key, name = compared.OURS[net]
    assert [r[key] for r in compared.lines_of(file)].count(name) == 1
    ours, theirs = compared.ours(net), [r for r in compared.lines_of("pruning") if r["net"] == net]
    assert len(theirs) >= 3
    for r in theirs:
        assert r["processor_seconds"] == pytest.approx(ours["processor_seconds"], rel=0.25)
        assert r["seed"] == ours["seed"] and max(r["kept"].values()) <= 1.0
