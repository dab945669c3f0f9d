"""What a kill leaves of a run is found again: nothing is lost, nothing is in the way."""

import shutil

import pytest
from fits import saved, trainer

from swsmix import load_run
from swsmix.training import runs


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


@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_was_killed_before_its_first_checkpoint_is_started_again(tmp_path, force):
    run = tmp_path / "run"
    runs.claim(run)
    with runs.new_run(run, force=force):
        saved(run, 1)
    assert load_run(run).epoch == 1 and list(tmp_path.iterdir()) == [run]


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
