"""A run folder is claimed, and what was there is replaced only where that was asked for."""

import pytest
from fits import saved

from swsmix import load_run
from swsmix.training import runs


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
