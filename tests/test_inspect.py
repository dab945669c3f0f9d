"""Inspect: what it says of a checkpoint is true, and no checkpoint can make it run code."""

import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import time
import zipfile

import cases
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swsmix import MixturePrior, checkpoints, codec, fit, plots
from swsmix.clustering import cluster
from swsmix.histogram import chunks
from swsmix.history import History
from swsmix.inspect import inspect
from swsmix.mixture import GaussianMixture
from swsmix.quantize import assign, bits_per_weight, snapped_state
from swsmix.report import Picture, figures, file_name, page, terminal, watch
from swsmix.report.text import bars, histogram_text, rebin


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2))


def state(seed=0):
    return network(seed).state_dict()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    net, x = network(), torch.randn(40, 6)
    prior = MixturePrior(net, 4, exclude="0.weight")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    y = (x[:, 0] > 0).long()
    fit(net, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer, epochs=3, prior=prior,
        run=folder, progress=False)  # fmt: skip
    return folder


# -- every kind of checkpoint -----------------------------------------------------------------


def write_shards(tensors, path):
    path.mkdir()
    names = list(tensors)
    save_file({n: tensors[n] for n in names[:2]}, path / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[2:]}, path / "model-00002-of-00002.safetensors")


WRITERS = {
    "state_dict": lambda t, path: torch.save(t, path),
    "before 1.6": lambda t, p: torch.save(t, p, _use_new_zipfile_serialization=False),
    "training state": lambda t, p: torch.save(
        {"epoch": 3, "state_dict": t, "optimizer_states": [{"exp_avg": torch.ones(3, 3)}]}, p
    ),
    "with an optimiser": lambda t, p: torch.save(
        {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 3)}}}}, p
    ),
    "safetensors": lambda t, path: save_file(t, path),
    "shards": write_shards,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_checkpoint_gives_the_networks_weights(kind, tmp_path):
    WRITERS[kind](state(), tmp_path / "any.name")
    found = inspect(tmp_path / "any.name")
    assert [layer.name for layer, _ in found.layers] == ["0.weight", "2.weight"]
    assert all(torch.equal(layer.weights, state()[layer.name]) for layer, _ in found.layers)
    assert found.left_out == dict.fromkeys(("0.bias", "2.bias"), "1 dimension, fewer than 2")
    assert found.history is None and found.groups[0].mixture.num_components == 7


def test_several_networks_in_one_file_keep_their_names(tmp_path):
    torch.save({"generator": state(0), "critic": state(1)}, tmp_path / "a.pt")
    names = [layer.name for layer, _ in inspect(tmp_path / "a.pt").layers]
    assert names == [
        "generator.0.weight",
        "generator.2.weight",
        "critic.0.weight",
        "critic.2.weight",
    ]


def test_a_bare_tensor_is_a_checkpoint_too(tmp_path):
    torch.save(torch.randn(20, 20), tmp_path / "a.pt")
    assert inspect(tmp_path / "a.pt").groups[0].size == 400


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


# -- no code ----------------------------------------------------------------------------------


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, zipped):
    mark = tmp_path / "mark"
    content = {"w": torch.ones(3, 3), "evil": Evil(mark)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pickled code \((os|posix)\.system\).*refused") as error:
        inspect(tmp_path / "a.pt")
    assert "weights_only=False" not in str(error.value)
    assert not mark.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)  # and it would have worked
    assert mark.exists()


def test_a_pickled_module_and_a_program_are_refused(tmp_path):
    torch.save(network(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"pickled code \(torch.nn.*state_dict\(\)"):
        inspect(tmp_path / "module.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/data.pkl", pickle.dumps(()))
        archive.writestr("a/code/x.py", "")
        archive.writestr("a/version", "3\n")
    with pytest.raises(ValueError, match=r"TorchScript|damaged"):
        inspect(tmp_path / "script.pt")


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    torch.save(state(), tmp_path / "whole.pt")
    save_file(state(), tmp_path / "whole.safetensors")
    np.savez(tmp_path / "a.npz", a=np.ones((3, 3)))
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent", "is not there"),
        (tmp_path / "empty", "holds neither a run"),
        (write("text", b"hello world, I am no checkpoint"), "begins with b'hello world, I a"),
        (write("nothing", b""), "begins with b''"),
        (write("half.pt", (tmp_path / "whole.pt").read_bytes()[:900]), "checkpoint"),
        (write("half", (tmp_path / "whole.safetensors").read_bytes()[:300]), "safetensors"),
        (write("pickle", pickle.dumps([1, 2], protocol=2)), "no weights to look at|damaged"),
        (tmp_path / "a.npz", "damaged, or not a file of torch.save"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            inspect(path)
        assert path.name in str(error.value)
    with pytest.raises(ValueError, match=r"'fc\*' matches no tensor; there are 0.weight"):
        inspect(tmp_path / "whole.pt", include=["fc*"])
    torch.save({"a": torch.full((3, 3), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="a: 9 of its 9 weights are nan or inf"):
        inspect(tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="at least 1; got 0"):
        inspect(tmp_path / "whole.pt", num_components=0)


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


# -- text -------------------------------------------------------------------------------------


def test_text_bars_rise_with_the_counts_and_show_a_single_weight():
    counts = np.array([0, 1, 10, 100, 10**6, 10**6])
    (line,) = bars(counts)
    assert line[0] == " " and line[1] != " " and line[4] == line[5] == "█"
    assert list(line) == sorted(line, key=" ▁▂▃▄▅▆▇█".index)
    tall = bars(counts, rows=5, ascii_only=True)
    assert len(tall) == 5 and all(len(row) == 6 for row in tall) and "".join(tall).isascii()
    filled = np.array([[c != " " for c in row] for row in tall])
    assert (filled[1:] >= filled[:-1]).all()  # a column stands on the ground
    assert bars(np.zeros(3)) == ["   "]
    assert rebin(np.arange(10), 4).tolist() == [3, 12, 21, 9]


def test_text_centres_stand_below_their_weights():
    mixture = GaussianMixture([0.5, 0.5, 0.0], [0.15, 0.65, 0.9], [0.01, 0.01, 0.01])
    edges, counts = np.linspace(0, 1, 11), np.zeros(10)
    counts[[1, 6]] = 5
    lines = histogram_text(counts, edges, mixture, rows=2, ascii_only=True).plain.split("\n")
    assert lines == [" @    @", " @    @", " ^    ^   ", "0        1"]


def plain(inspection, width=120, **options):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    console.print(terminal(inspection, width=width, **options))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_holds_all_that_was_counted(run_folder, width):
    found = inspect(run_folder, refit=True)
    text = plain(found, width)
    assert max(map(len, text.split("\n"))) <= width
    for layer, _ in found.layers:
        row = next(line for line in text.split("\n") if line.startswith(layer.name))
        shape = "x".join(map(str, layer.weights.shape))
        for entry in (shape, f"{layer.size:,}", f"{layer.bits_per_weight:.2f}", "100.0 %"):
            assert entry in row.replace("  ", " ")
    assert "left out (1 dimension, fewer than 2): 0.bias, 2.bias" in text
    assert plain(found, ascii_only=True).isascii()


# -- figures and the page ---------------------------------------------------------------------


def test_a_run_has_all_figures_and_a_foreign_checkpoint_those_without_a_history(
    run_folder, tmp_path
):
    names = [picture.name for picture in figures(inspect(run_folder))]
    assert names == ["clusters", "responsibilities", "collapse", "trajectories", "before-after",
                     "layers", "entropy", "hinton-2.weight", "loss-terms"]  # fmt: skip
    torch.save(state(), tmp_path / "a.pt")
    pictures = [*figures(inspect(tmp_path / "a.pt", per_tensor=True))]
    assert [picture.name for picture in pictures] == [
        "clusters-0.weight", "responsibilities-0.weight", "clusters-2.weight",
        "responsibilities-2.weight", "layers", "entropy", "hinton-0.weight", "hinton-2.weight",
    ]  # fmt: skip
    assert pictures[0].caption.startswith("Clusters. 0.weight: ")
    assert file_name("../a b/c") == ".._a_b_c"


def test_of_very_many_tensors_the_largest_are_drawn_and_it_is_said(tmp_path):
    torch.save({f"layer{i:02}": torch.randn(80, 1 + i) for i in range(45)}, tmp_path / "a.pt")
    pictures = {p.name: p for p in figures(inspect(tmp_path / "a.pt", num_components=2))}
    assert "The 24 largest of 45" in pictures["layers"].caption
    assert len(pictures["layers"].figure.axes) == 24
    bars_ = pictures["entropy"].figure.axes[0]
    assert bars_.get_yticklabels()[0].get_text() == "layer05" and len(bars_.patches) == 40


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_holds_the_inspection_and_is_the_same_each_time(run_folder):
    found = inspect(run_folder)
    first, again = (page(found, itertools.islice(figures(found), 2)) for _ in range(2))
    assert first == again
    assert "{{" not in first and first.count("<figure>") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", first)
    assert "://" not in first.replace("http://www.w3.org/2000/svg", "")
    data = data_of(first)
    assert data["summary"]["weights"] == "40"
    (group,) = data["groups"]
    assert [frame["label"] for frame in group["frames"]] == [f"epoch {i}" for i in range(4)]
    history = found.history
    for i, frame in enumerate(group["frames"]):
        assert sum(frame["counts"]) == 40
        assert frame["counts"] == history.stacked("all", "bin_counts")[i].tolist()
        order = history.stacked("all", "mean")[-1].argsort(stable=True)
        expected = history.stacked("all", "mean")[i][order]
        assert frame["mean"] == pytest.approx(expected.tolist(), rel=1e-6)
    (layer,) = data["layers"]
    assert sum(layer["counts"]) == 40 and layer["clusters"] == found.layers[0][0].num_clusters


def test_names_from_a_checkpoint_never_become_markup(tmp_path):
    name = '</script><img src=x onerror="alert(1)">{{data}}'
    torch.save({name: torch.randn(9, 9)}, tmp_path / "a<b>.pt")
    found = inspect(tmp_path / "a<b>.pt")
    text = page(found, [Picture(name, name, plots.entropy({name: 1.0}))])
    assert "<img src=x" not in text and "a<b>" not in text.split("<script")[0]
    assert data_of(text)["layers"][0]["name"] == name


def test_a_long_history_is_thinned_evenly_with_both_ends(run_folder):
    found = inspect(run_folder)
    history = found.history
    for columns in history.series.values():
        for name, values in columns.items():
            columns[name] = (values * 150)[:500]
    for name, values in history.scalars.items():
        history.scalars[name] = [float(i) for i in range(500)] if name == "epoch" else values * 125
    frames = data_of(page(found))["groups"][0]["frames"]
    assert len(frames) == 200
    assert frames[0]["label"] == "epoch 0" and frames[-1]["label"] == "epoch 499"


# -- while it trains --------------------------------------------------------------------------


def short_history(records=3):
    history = History()
    for t in range(records):
        w = torch.tensor([-1.0, 0.0, 0.0, 1.0]) * (1 + t)
        mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0 + t], [0.1, 0.2 + t])
        scalars = {"epoch": 2.0 * t, "objective": 3.0 - t, "validation_measure": float("nan")}
        history.record(scalars, {"all": (w, mixture, torch.tensor([2.5, 1.5]))})
    return history


@pytest.mark.parametrize("terminal", [True, False])
def test_the_live_view_shows_the_newest_record(terminal):
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with pytest.raises(KeyboardInterrupt), watch(console) as callback:
        for records in (1, 2, 3):
            callback(records, short_history(records))
        raise KeyboardInterrupt  # it leaves the last view, and the terminal as it was
    shown = console.file.getvalue()
    assert ("epoch 0" in shown) == terminal  # what is no terminal is not filled with old views
    last = shown[shown.rindex("epoch 4") :]
    assert "objective 1" in last and "nan" not in last
    assert "▲" in last and "2.2" in last and "62.5 %" in last


def test_tensorboard_holds_the_history_once_each(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from swsmix.tensorboard import tensorboard

    history, callback = short_history(), tensorboard(tmp_path)
    callback(2, short_history(2))
    callback(4, history)
    events = EventAccumulator(str(tmp_path), {"histograms": 0})
    events.Reload()
    scalars = {
        "loss/objective": [3, 2, 1],
        "all/mean/1": [1, 2, 3],
        "all/std/1": [0.2, 1.2, 2.2],
        "all/count/0": [2.5] * 3,
        "all/live": [2] * 3,
    }
    for name, expected in scalars.items():
        assert [e.value for e in events.Scalars(name)] == pytest.approx(expected)
        assert [e.step for e in events.Scalars(name)] == [0, 2, 4]
    assert "loss/validation_measure" not in events.Tags()["scalars"]
    histograms = [e.histogram_value for e in events.Histograms("all/weights")]
    assert [(h.min, h.max, h.num) for h in histograms] == [(-t, t, 4) for t in (1, 2, 3)]
    assert all(sum(h.bucket) == 4 for h in histograms)


def test_without_tensorboard_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    from swsmix.tensorboard import tensorboard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "swsmix\[tensorboard\]"'):
        tensorboard(tmp_path)


def test_a_compressed_file_is_a_checkpoint(tmp_path):
    net = torch.nn.Linear(40, 30)
    prior = MixturePrior(net, 5, zero=True)
    codec.save_compressed(tmp_path / "net.sws", net, prior)
    found = checkpoints.read(tmp_path / "net.sws")
    assert found.kind == "compressed file of swsmix"
    snapped = snapped_state(net, prior)
    assert all(torch.equal(found.tensors[name], t) for name, t in snapped.items())


def test_tensors_beside_a_nested_state_dict_do_not_hide_it(tmp_path):
    wanted = torch.nn.Parameter(torch.randn(4, 5))
    saved = {"state_dict": {"w": wanted}, "best": torch.tensor(0.5), "epoch": 3}
    torch.save(saved, tmp_path / "a.pt")
    found = checkpoints.read(tmp_path / "a.pt").tensors
    assert list(found) == ["best", "w"] and torch.equal(found["w"], wanted)
    assert not found["w"].requires_grad


def test_a_folder_of_epochs_is_not_taken_for_one_network(tmp_path):
    for epoch in (1, 2):
        torch.save(state(epoch), tmp_path / f"epoch{epoch}.pt")
    with pytest.raises(ValueError, match="2 files with tensors of the same names"):
        checkpoints.read(tmp_path)


def test_names_with_markup_or_mathematics_are_only_names(tmp_path):
    torch.save({r"a$\frac$b[/]": torch.randn(30, 30), "b": torch.ones(4, 4)}, tmp_path / "a.pt")
    taken = inspect(tmp_path / "a.pt", per_tensor=True)
    for picture in figures(taken):
        picture.figure.savefig(io.BytesIO())  # mathematics is parsed when it is drawn
