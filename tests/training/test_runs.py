"""Run folders: what is saved is read back, or an error names the file."""

import errno
import pickle
import shutil

import pytest
import torch
from fits import saved
from torch import nn

from swsmix import load_run
from swsmix.training import runs
from swsmix.training.history import History


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path):
    net, prior = saved(tmp_path)
    run = load_run(tmp_path)
    assert run.epoch == 1 and run.training["tick"] == 7
    assert all(torch.equal(run.network[k], v) for k, v in net.state_dict().items())
    assert all(torch.equal(run.prior[k], v) for k, v in prior.state_dict().items())
    assert torch.equal(run.mixtures["all"].mean, prior.mixtures["all"].mean.double())
    assert "tick" not in repr(run) and "tensor(" not in repr(run)


def test_older_checkpoints_go_only_where_the_newest_is_whole(tmp_path):
    saved(tmp_path, 1)
    one, two = (tmp_path / f"checkpoint-00000{epoch}" for epoch in (1, 2))
    shutil.copytree(one, two)
    (two / "training.pt").rename(tmp_path / "training.pt")
    with runs.old_run(tmp_path):
        assert one.is_dir() and two.is_dir()
    (tmp_path / "training.pt").rename(two / "training.pt")
    with runs.old_run(tmp_path):
        assert two.is_dir() and not one.is_dir()


def test_a_newer_checkpoint_replaces_the_older_and_an_outdated_outcome(tmp_path):
    saved(tmp_path, 1)
    saved(tmp_path, 1, final=True)
    assert load_run(tmp_path).folder.name == "final"
    assert load_run(tmp_path, resumable=True).folder.name == "checkpoint-000001"
    saved(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.glob("*-*[0-9]")) == ["checkpoint-000002"]
    assert not (tmp_path / "final").exists()


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    monkeypatch.undo()
    assert load_run(tmp_path).epoch == 1
    assert {p.name for p in tmp_path.iterdir()} == {".swsmix-run", "checkpoint-000001"}


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    file = tmp_path / "results.json"
    runs.save_json(file, {"a": 1})
    with pytest.raises(TypeError):
        runs.save_json(file, {"a": object()})
    assert file.read_text() == '{\n  "a": 1\n}\n' and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "name", ["network.safetensors", "prior.safetensors", "history.safetensors", "training.pt"]
)
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "empty"])
def test_missing_and_damaged_files_are_named(tmp_path, name, damage):
    saved(tmp_path)
    file = tmp_path / "checkpoint-000001" / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"cut": data[: len(data) // 2], "garbage": b"\x80\x04." * 99, "empty": b""}[damage]
        )
    with pytest.raises(ValueError, match="lacks" if damage == "missing" else "damaged") as caught:
        load_run(tmp_path)
    assert name in str(caught.value)


class Payload:
    def __reduce__(self):
        return print, ("code from a checkpoint was run",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    saved(tmp_path)
    for write in (
        lambda f: f.write_bytes(pickle.dumps(Payload())),
        lambda f: torch.save({"epoch": 1, "bad": Payload()}, f),
    ):
        write(tmp_path / "checkpoint-000001" / "training.pt")
        with pytest.raises(ValueError, match=r"training.pt is damaged"):
            load_run(tmp_path)
    assert "was run" not in capsys.readouterr().out


def test_a_checkpoint_of_another_network_does_not_fit(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        runs.restore_(load_run(tmp_path), nn.Linear(2, 2), None)


def test_a_tied_network_loads_strictly_from_its_run(tmp_path):
    def tied():
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    net = tied()
    runs.save_checkpoint(tmp_path, 1, network=net, prior=None, history=History(), training={})
    other = tied()
    other.load_state_dict(load_run(tmp_path).network)
    assert torch.equal(other[1].weight, net[0].weight)


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        load_run(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        load_run(tmp_path)


def test_configs_round_trip_without_what_is_none(tmp_path):
    runs.save_config(tmp_path, {"seed": 3, "tau": 0.5, "data": "sunspots", "net": None})
    assert runs.load_config(tmp_path) == {"seed": 3, "tau": 0.5, "data": "sunspots"}
    (tmp_path / "config.toml").write_text("seed = = 3")
    with pytest.raises(ValueError, match=r"config.toml is damaged"):
        runs.load_config(tmp_path)


def test_all_files_have_one_mode(tmp_path):
    saved(tmp_path)
    runs.save_json(tmp_path / "results.json", {})
    plain = tmp_path / "plain"
    plain.touch()
    modes = {p.stat().st_mode for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {plain.stat().st_mode}


def test_a_full_disk_is_one_sentence_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    write = type(tmp_path).write_bytes

    def full(path, data):
        if path.name == "history.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device; .* is kept"):
        saved(tmp_path, 2)
    assert load_run(tmp_path).epoch == 1 and not list(tmp_path.glob(".writing-*"))


def test_no_message_advises_to_unpickle(tmp_path):
    saved(tmp_path)
    torch.save({"epoch": 1, "bad": Payload()}, tmp_path / "checkpoint-000001" / "training.pt")
    with pytest.raises(ValueError, match=r"training.pt") as caught:
        load_run(tmp_path)
    assert "weights_only" not in str(caught.value)


def test_the_newest_checkpoint_is_the_one_of_the_largest_number(tmp_path):
    saved(tmp_path, 999_999)
    other = tmp_path / "checkpoint-999999"
    (tmp_path / "aside").mkdir()
    other.rename(tmp_path / "aside" / other.name)
    saved(tmp_path, 1_000_000)
    (tmp_path / "aside" / other.name).rename(other)  # killed before the older one was deleted
    (tmp_path / "checkpoint-²").mkdir()  # somebody's own
    assert load_run(tmp_path).epoch == 1_000_000
    (tmp_path / "checkpoint-1000000").rename(tmp_path / ".old-checkpoint-1000000")
    assert load_run(tmp_path).epoch == 1_000_000
