import errno
import pickle
import shutil

import pytest
import torch
from fits import saved, trainer
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


def test_folders_are_never_overwritten_without_being_asked(tmp_path):
    run = tmp_path / "run"
    saved(run)
    with pytest.raises(FileExistsError, match="continue it"), runs.new_run(run):
        raise AssertionError
    with pytest.raises(FileExistsError, match="continue it"):
        runs.claim(run)
    assert load_run(run).epoch == 1


def test_an_old_run_is_deleted_only_once_the_new_one_has_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    saved(run, 1)
    with pytest.raises(ZeroDivisionError), runs.new_run(run, force=True):
        raise ZeroDivisionError
    assert load_run(run).epoch == 1
    with runs.new_run(run, force=True):
        saved(run, 7)
    assert load_run(run).epoch == 7
    assert list(tmp_path.iterdir()) == [run]


def test_a_run_that_came_to_nothing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), runs.new_run(tmp_path / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["thesis.tex", "config.toml", "checkpoint-500/model.bin", "final/mine"]
)
def test_what_is_no_run_folder_is_not_touched_even_by_force(tmp_path, name):
    file = tmp_path / "other" / name
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    for folder in (tmp_path / "other", file):
        with (
            pytest.raises(FileExistsError, match="not a run folder"),
            runs.new_run(folder, force=True),
        ):
            raise AssertionError
    with pytest.raises(FileExistsError, match="not a run folder"):
        saved(tmp_path / "other")
    assert file.read_text() == "years of work"


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the run folder"):
        runs.claim(tmp_path / "file" / "run")


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


@pytest.mark.parametrize("new_has_a_checkpoint", [False, True])
def test_a_kill_while_a_run_is_replaced_leaves_one_run_and_it_can_be_replaced_again(
    tmp_path, new_has_a_checkpoint
):
    run, aside = tmp_path / "run", tmp_path / ".run.replaced"
    saved(run, 3)
    run.rename(aside)  # what `new_run(force=True)` does first; killed here
    assert load_run(run).epoch == 3
    runs.claim(run)
    assert load_run(run).epoch == 3
    if new_has_a_checkpoint:
        saved(run, 1)
    wanted = 1 if new_has_a_checkpoint else 3
    assert load_run(run).epoch == wanted
    runs.recover(run)
    assert load_run(run).epoch == wanted and list(tmp_path.iterdir()) == [run]
    with runs.new_run(run, force=True):
        saved(run, 7)
    assert load_run(run).epoch == 7 and list(tmp_path.iterdir()) == [run]


def test_a_half_removed_outcome_gives_way_to_the_checkpoint(tmp_path):
    saved(tmp_path, 2)
    saved(tmp_path, 2, final=True)
    (tmp_path / "final" / "prior.safetensors").unlink()
    assert load_run(tmp_path).folder.name == "checkpoint-000002"


def test_all_files_have_one_mode(tmp_path):
    saved(tmp_path)
    runs.save_json(tmp_path / "results.json", {})
    plain = tmp_path / "plain"
    plain.touch()
    modes = {p.stat().st_mode for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {plain.stat().st_mode}


def test_what_a_killed_process_left_in_a_run_folder_is_cleared(tmp_path):
    saved(tmp_path, 2)
    files = sorted(tmp_path.rglob("*"))
    (tmp_path / ".writing-0").mkdir()
    (tmp_path / f".{'0' * 32}.json").touch()
    runs.recover(tmp_path)
    assert sorted(tmp_path.rglob("*")) == files


def test_a_kill_between_the_two_renames_of_a_checkpoint_loses_nothing(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "checkpoint-000002").rename(tmp_path / ".old-checkpoint-000002")
    assert load_run(tmp_path).epoch == 2
    runs.recover(tmp_path)
    assert load_run(tmp_path).folder.name == "checkpoint-000002"


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


@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_was_killed_before_its_first_checkpoint_is_started_again(tmp_path, force):
    run = tmp_path / "run"
    runs.claim(run)
    with runs.new_run(run, force=force):
        saved(run, 1)
    assert load_run(run).epoch == 1 and list(tmp_path.iterdir()) == [run]


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


def test_an_outcome_older_than_the_checkpoint_is_never_there(tmp_path, monkeypatch):
    saved(tmp_path, 2)
    saved(tmp_path, 2, final=True)
    replace = type(tmp_path).replace

    def kill(path, target):
        if target.name == "checkpoint-000003":
            replace(path, target)
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 3)
    assert load_run(tmp_path).epoch == 3


@pytest.mark.parametrize("force", [False, True])
def test_the_outcome_of_a_run_without_a_checkpoint_is_replaced_only_by_force(tmp_path, force):
    run = tmp_path / "run"
    saved(run, 2)
    (run / "checkpoint-000002").rename(run / "final")
    if not force:
        with pytest.raises(FileExistsError, match="the outcome of a run, and no checkpoint"):
            runs.new_run(run).__enter__()
    else:
        with pytest.raises(ZeroDivisionError), runs.new_run(run, force=True):
            raise ZeroDivisionError
    assert load_run(run).epoch == 2 and list(tmp_path.iterdir()) == [run]


@pytest.mark.parametrize("name", ["run", "link"])
def test_a_run_folder_that_is_a_link_is_replaced_where_it_lies(tmp_path, name):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk / "run")
    path = tmp_path / "link" if name == "link" else disk / "run"
    with runs.new_run(path):
        saved(path, 1)
    with pytest.raises(ZeroDivisionError), runs.new_run(path, force=True):
        raise ZeroDivisionError
    assert load_run(path).epoch == 1
    with runs.new_run(path, force=True):
        assert load_run(path).epoch == 1
        saved(path, 2)
    assert (tmp_path / "link").is_symlink() and load_run(disk / "run").epoch == 2
    assert [p.name for p in disk.iterdir()] == ["run"]
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "link"}


def test_a_folder_of_the_user_stays_when_a_run_comes_to_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), runs.new_run(tmp_path):
        raise ZeroDivisionError
    assert tmp_path.exists() and not list(tmp_path.iterdir())
    runs.claim(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ZeroDivisionError), runs.new_run(tmp_path):
        raise ZeroDivisionError
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_copied_without_its_marker_goes_on(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / ".swsmix-run").unlink()
    with runs.old_run(tmp_path):
        assert runs.is_run(tmp_path)
    saved(tmp_path, 2)
    assert load_run(tmp_path).epoch == 2


@pytest.mark.parametrize("held", ["new_run", "old_run"])
def test_what_ends_the_work_in_the_middle_leaves_no_temporary_file(tmp_path, held):
    if held == "old_run":
        saved(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt), getattr(runs, held)(tmp_path):
        saved(tmp_path, 2)
        (tmp_path / ".writing-0").mkdir()  # a second signal came in the middle of cleaning up
        (tmp_path / f".{'0' * 32}.png").touch()
        raise KeyboardInterrupt
    assert {p.name for p in tmp_path.iterdir()} == {".swsmix-run", "checkpoint-000002"}


STATES = {  # what a kill leaves of `new_run(force=True)`: files of the new run, of the one aside
    "moved aside": (None, "whole"),
    "the new folder is made": ("empty", "whole"),
    "marked": ("marked", "whole"),
    "its config is written": ("config", "whole"),
    "its first checkpoint is half written": ("half", "whole"),
    "it is saved": ("whole", "whole"),
    "the old one is half deleted": ("whole", "half"),
    "only its marker is left": ("whole", "marked"),
    "only its folder is left": ("whole", "empty"),
    "nothing was there to replace": ("config", "marked"),
    "the old one was interrupted before": ("marked", "messy"),
}


def lay(path, state):
    if state is None:
        return
    path.mkdir()
    if state != "empty":
        runs.claim(path)
    if state == "config":
        runs.save_config(path, {"seed": 1})
    if state in ("whole", "messy"):
        saved(path, 5)
    if state in ("half", "messy"):
        (path / ".writing-0").mkdir()
        (path / ".writing-0" / "network.safetensors").write_bytes(b"half")


@pytest.mark.parametrize("then", ["recover", "old_run", "new_run", "force", "fit", "nothing saved"])
@pytest.mark.parametrize("state", STATES)
def test_a_run_is_never_invisible_and_can_be_continued_or_replaced(tmp_path, state, then):
    run, aside = tmp_path / "run", tmp_path / ".run.replaced"
    new, old = STATES[state]
    lay(run, new)
    lay(aside, old)
    there = "whole" in (new, old) or old == "messy"
    if there:
        assert load_run(run).epoch == 5
    if then == "recover":
        runs.recover(run)
    elif then == "old_run":
        with runs.old_run(run):
            pass
    elif then == "new_run":
        try:
            with runs.new_run(run):
                saved(run, 6)
        except FileExistsError:
            assert there
        else:
            assert not there and load_run(run).epoch == 6
            there = False
    elif then == "force":
        with runs.new_run(run, force=True):
            saved(run, 6)
        assert load_run(run).epoch == 6
        there = False
    elif then == "fit":
        *_, go = trainer("l-bfgs")
        if there:
            with pytest.raises(FileExistsError, match="already holds a run"):
                go(1, run=run)
        else:
            assert len(go(1, run=run, resume=True)) == 2
    elif then == "nothing saved":
        with pytest.raises(ZeroDivisionError), runs.new_run(run, force=True):
            raise ZeroDivisionError
    if there:
        assert load_run(run).epoch == 5
    assert not aside.exists() and {p.name for p in tmp_path.iterdir()} <= {"run"}
    assert not list(tmp_path.rglob(".writing-*"))


def test_a_checkpoint_that_a_kill_left_beside_the_newest_goes_on_resume(run_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    runs.recover(folder)
    before = sorted(folder.iterdir())
    shutil.copytree(folder / "checkpoint-000003", folder / "checkpoint-000002")
    runs.recover(folder)
    assert sorted(folder.iterdir()) == before
