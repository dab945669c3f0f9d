"""The rows of CIFAR-10: a unit runs, resumes, writes a file that decodes, and only when asked."""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from papers.ullrich2017 import cifar, explore, gradual_pruning, kept, pruning, run, tables, verify
from swsmix.codec import load_compressed
from swsmix.compression import save_compressed
from swsmix.problems import resnets
from swsmix.problems.augmentation import Augmented
from swsmix.problems.cifar10 import CIFAR10Tensors
from swsmix.problems.reproduction import runner
from swsmix.problems.reproduction.runner import Places
from swsmix.problems.reproduction.units import unfinished

TINY = cifar.Row(
    "tiny",
    partial(resnets.wrn, 10, 1),
    blocks=3,
    allowed=100.0,
    recipe=replace(cifar.RECIPE, em_every=2, **cifar.SHORT),
    dense_epochs=2,
    batch_size=32,
)


def few(seed, subset):
    """Images of ten shades of grey, in noise."""
    generator = torch.Generator().manual_seed(seed)

    def part(n):
        y = torch.randint(10, (n,), generator=generator)
        noise = 0.3 * torch.randn(n, 3, 32, 32, generator=generator)
        return noise + y[:, None, None, None] / 5, y

    return CIFAR10Tensors(*part(64), *part(32), *part(32))


def _no_images(*_):
    raise FileNotFoundError("no images\nhere")


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "ROWS", {"tiny": TINY})
    monkeypatch.setattr(cifar, "images", few)
    monkeypatch.setattr(cifar, "THREADS", 1)
    verify._test_images.cache_clear()
    (tmp_path / "results").mkdir()
    return Places(tmp_path / "results", tmp_path / "figures", tmp_path)


def test_a_row_leaves_a_file_that_is_verified(places, capsys, monkeypatch):
    for stage in cifar.stages("tiny", places, 1, quick=False):
        assert runner.run_units(stage, places.results, 1) == 1
        assert unfinished(stage, places.results) == []
    result = json.loads((places.results / "tiny-seed0.json").read_text())
    file = places.results / "tiny-seed0.sws"
    assert result["size_bytes"] == file.stat().st_size
    decoded = load_compressed(file)
    assert result["float32_bytes"] == 4 * sum(t.numel() for t in decoded.values())
    net = cifar.network(TINY, 0, folded=True)
    found = cifar.measure(net, decoded, few(0, None))
    for part in ("validation", "test"):
        name = f"compressed_{part}_error_percent"
        assert found[name] == result[name]
    # The second batch norm of each block is in the convolution before it.
    assert not any("bn2" in name for name in decoded)
    monkeypatch.setitem(tables.CIFAR, "tiny", ("Tiny", "not run"))
    lines = tables.cifar_table(kept.Results(places.results))
    (row,) = (line for line in lines if line.startswith("| Tiny |"))
    assert f"| {result['size_bytes']:,} | **{result['ratio']:.0f}x** |" in row
    assert any(line.startswith("| WRN-16-4 | **ours**: not run") for line in lines)
    capsys.readouterr()
    assert verify.verify(places.results)
    assert "tiny-seed0: agrees; " in capsys.readouterr().out

    # A table that says otherwise, another network, a damaged file, and none.
    table = places.results / "tiny-seed0.json"
    for changes in ({"size_bytes": 7}, {"compressed_test_error_percent": 101.0}):
        table.write_text(json.dumps(result | changes))
        assert not verify.verify(places.results)
        assert "tiny-seed0: differs; " in capsys.readouterr().out
    table.write_text(json.dumps(result))
    content = file.read_bytes()
    save_compressed(file, torch.nn.Linear(3, 3))
    assert not verify.verify(places.results)
    assert "it is not the network of the row" in capsys.readouterr().out
    file.write_bytes(content[:-3])
    assert not verify.verify(places.results)
    assert "differs: 1" in capsys.readouterr().out
    file.write_bytes(content)
    with monkeypatch.context() as absent:
        absent.setattr(cifar, "images", _no_images)
        verify._test_images.cache_clear()
        assert not verify.verify(places.results)
        assert "tiny-seed0: not measured; " in (said := capsys.readouterr().out)
        assert "which decode; no images here" in said
    file.unlink()
    assert verify.verify(places.results)
    assert "tiny-seed0: no file kept; " in capsys.readouterr().out
    assert unfinished(stage, places.results) == stage


def stopped_at(number):
    """`Augmented`, interrupted as its epoch of that number begins, counted over all."""
    count = itertools.count()

    class Stopped(Augmented):
        def __iter__(self):
            if next(count) == number:
                raise KeyboardInterrupt
            yield from super().__iter__()

    return Stopped


def test_a_dense_run_that_was_stopped_ends_as_if_it_had_not_been(places, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    cifar.pretrain(TINY, 0, whole, None)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cifar, "Augmented", stopped_at(1))
        cifar.pretrain(TINY, 0, broken, None)
    cifar.pretrain(TINY, 0, broken, None)
    first, second = (cifar.dense_file(TINY, 0, each).read_bytes() for each in (whole, broken))
    assert first == second


@pytest.mark.slow
def test_a_compression_that_was_stopped_ends_as_if_it_had_not_been(places, tmp_path, monkeypatch):
    row = replace(TINY, recipe=replace(TINY.recipe, finetune_epochs=1), allowed=30.0)
    files = []
    for stops in ((), (1, 2)):
        scratch = tmp_path / f"{len(stops)}-stops"
        scratch.mkdir()
        cifar.pretrain(row, 0, scratch, None)
        for stop in stops:  # as the second phase begins, and two epochs later
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(cifar, "Augmented", stopped_at(stop))
                cifar.compress(row, 0, scratch, scratch, None)
        cifar.compress(row, 0, scratch, scratch, None)
        files.append((scratch / "tiny-seed0.sws").read_bytes())
    assert files[0] == files[1]


def test_a_row_is_made_by_its_name_alone(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(runner, "run_units", lambda units, *_: made.extend(units) or 0)
    monkeypatch.setattr("sys.argv", ["run.py", "--only", "resnet-20", "--out", str(tmp_path)])
    run.main()
    assert [unit.key for unit in made] == ["resnet-20-dense-seed0", "resnet-20-seed0"]
    made.clear()
    monkeypatch.setattr(run, "mnist", lambda: None)
    monkeypatch.setattr("sys.argv", ["run.py", "--quick", "--out", str(tmp_path)])
    run.main()
    assert made and not any("resnet" in unit.key for unit in made)


def test_an_attempt_on_a_row_has_its_phases_alone_and_reads_no_test_images(places, monkeypatch):
    dense, _ = cifar.stages("tiny", places, 1, quick=False)
    runner.run_units(dense, places.results, 1)
    monkeypatch.setattr(explore, "SCRATCH", places.scratch)
    monkeypatch.setattr(explore, "ATTEMPTS", places.scratch / "attempts.jsonl")
    parts = {n: t for n, t in vars(few(0, None)).items() if "test" not in n}
    monkeypatch.setattr(cifar, "images", lambda *_: SimpleNamespace(**parts))
    monkeypatch.setattr("sys.argv", ["explore.py", "e0", "tiny", "sparsify_tau=0.25"])
    explore.main()
    line = json.loads(explore.ATTEMPTS.read_text())
    assert line["recipe"]["sparsify_tau"] == line["changes"]["sparsify_tau"] == 0.25
    runs = {path.name for path in (places.scratch / "attempts/e0/runs/tiny-seed0").iterdir()}
    assert {"sparsify", "quantise"} <= runs <= {"sparsify", "quantise", "finetune"}
    assert (places.scratch / "attempts/e0/tiny-seed0.sws").stat().st_size == line["size_bytes"]
    cifar.dense_file(TINY, 0, places.scratch).unlink()
    with pytest.raises(SystemExit, match="swsmix reproduce ullrich2017 --only tiny"):
        explore.main()


def test_pruning_keeps_the_shares_of_a_file_and_counts_the_errors_of_its_own(
    places, tmp_path, monkeypatch
):
    monkeypatch.setattr(pruning, "HERE", tmp_path / "papers" / "ullrich2017")
    monkeypatch.setattr(pruning, "KEPT", tmp_path / "pruning.jsonl")
    states = []
    monkeypatch.setattr(pruning, "encode", lambda state: states.append(state) or b"12345")
    net = cifar.network(TINY, 1, folded=True)
    asked = {name: 0.2 + 0.6 * (p.numel() % 7) / 7 for name, p in net.named_parameters()}
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(gradual_pruning.largest(p, asked[name]))
    save_compressed(tmp_path / "other.sws", net.state_dict())
    monkeypatch.setattr(sys, "argv", [
        "pruning.py", "tiny", "--shares-of", str(tmp_path / "other.sws"), "--times", "0.5",
        "--values", "4", "--prune-epochs", "2", "--cluster-epochs", "1", "fc.weight=1.6",
    ])  # fmt: skip
    pruning.main()
    (line,) = map(json.loads, (tmp_path / "pruning.jsonl").read_text().splitlines())
    assert line["size_bytes"] == 5
    (state,) = states
    weights = {name: t for name, t in state.items() if t.ndim > 1}
    assert set(line["kept"]) == set(weights)  # the biases and norms are as they were trained
    for name, t in weights.items():
        share = 0.8 if name == "fc.weight" else 0.5 * asked[name]
        assert line["kept"][name] == pytest.approx(share, abs=1 / t.numel())
        assert line["nonzero"][name] <= round(line["kept"][name] * t.numel())
        assert len(t.unique()) <= 4
    found = cifar.measure(net, state, few(0, None), test=False)
    assert found["compressed_validation_error_percent"] == line["validation_error_percent"]
