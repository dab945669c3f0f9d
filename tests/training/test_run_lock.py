"""One process at a time writes to a run folder, whatever asks for it, and a crash frees it."""

import errno
import fcntl
import os
import signal
import socket
import sys
import threading
import time

import pytest
from fits import elsewhere, saved, trainer

from swsmix import load_run
from swsmix.training import runs
from swsmix.training.runs import lock
from swsmix.training.runs.folder import MARKER

HERE = f"process {os.getpid()} on {socket.gethostname()} is writing to the run"


def writers(path):
    """All ways to write to a run folder."""

    def forced():
        with runs.new_run(path, force=True):
            saved(path, 9)

    def new():
        with runs.new_run(path):
            saved(path, 9)

    def old():
        with runs.old_run(path):
            saved(path, 9)

    *_, go = trainer("l-bfgs")
    return {
        "new_run": new,
        "new_run(force)": forced,
        "old_run": old,
        "fit": lambda: go(1, run=path),
        "fit(resume)": lambda: go(1, run=path, resume=True),
    }


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != MARKER}


@pytest.mark.parametrize("held", ["an old run", "a new run", "a run that is being replaced"])
@pytest.mark.parametrize("name", writers(None))
def test_a_second_process_is_told_who_holds_the_folder_and_changes_nothing(tmp_path, held, name):
    path = tmp_path / "run"
    if held != "a new run":
        saved(path, 1)
    hold = {
        "an old run": lambda: runs.old_run(path),
        "a new run": lambda: runs.new_run(path),
        "a run that is being replaced": lambda: runs.new_run(path, force=True),
    }[held]
    with hold():
        before = contents(tmp_path)
        said = elsewhere(writers(path)[name])
        assert contents(tmp_path) == before
        assert said.startswith(f"BlockingIOError: {HERE}") and "or name another folder" in said
        assert str(path) in said
        if held != "a new run":
            assert elsewhere(lambda: load_run(path)) == "done"  # reading needs no lock
    if name != "new_run" or held == "a new run":  # it is free now
        assert elsewhere(writers(path)[name]) == "done" or name.startswith("fit")


def test_fit_holds_its_run_folder_until_it_ends(tmp_path):
    said = []

    def ask(epoch, history):
        for name, write in writers(tmp_path).items():
            said.append((name, elsewhere(write)))

    *_, go = trainer("l-bfgs")
    go(1, run=tmp_path, callback=ask)
    assert len(said) == 5 and all(HERE in text for _, text in said), said
    assert (tmp_path / MARKER).read_bytes() == b""
    *_, go = trainer("l-bfgs")
    go(2, run=tmp_path, resume=True, callback=ask)
    assert len(said) == 10 and all(HERE in text for _, text in said), said


def test_another_thread_is_refused_and_the_same_one_may_ask_again(tmp_path):
    saved(tmp_path, 1)
    caught = []

    def ask():
        try:
            with runs.old_run(tmp_path):
                pass
        except BlockingIOError as error:
            caught.append(str(error))

    with runs.old_run(tmp_path), runs.old_run(tmp_path), runs.locked(tmp_path):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(caught) == 1 and HERE in caught[0]
    ask()
    assert len(caught) == 1


def test_the_lock_of_a_killed_process_is_free_and_its_name_is_not_said_again(tmp_path):
    saved(tmp_path, 1)

    def crash():
        with runs.old_run(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert elsewhere(crash) == ""
    assert (tmp_path / MARKER).read_text().startswith("process ")
    with runs.old_run(tmp_path):
        assert (tmp_path / MARKER).read_text().startswith(f"process {os.getpid()} ")
        assert HERE in elsewhere(writers(tmp_path)["old_run"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch has threads
def test_a_forked_child_keeps_no_lock_of_a_parent_that_was_killed(tmp_path):
    saved(tmp_path, 1)
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with runs.old_run(tmp_path):
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
            time.sleep(60)
            os._exit(0)
    child = int(os.read(read, 20))
    with pytest.raises(BlockingIOError), runs.old_run(tmp_path):
        raise AssertionError
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        with runs.old_run(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_that_is_given_back_is_free_while_a_child_is_still_being_forked(tmp_path):
    saved(tmp_path, 1)
    with runs.old_run(tmp_path):
        ((handle, _),) = lock._held.values()
        childs = os.dup(handle)
    try:
        assert elsewhere(writers(tmp_path)["old_run"]) == "done"
    finally:
        os.close(childs)


def test_the_folder_may_vanish_between_the_look_and_the_lock(tmp_path, monkeypatch):
    # Another process ends there and removes the folder that it has made.
    path, opened = tmp_path / "run", os.open
    vanish = [1, 1]

    def open_late(file, *options):
        if str(file).endswith(MARKER) and options[0] & os.O_RDWR and vanish:
            vanish.pop()
            (path / MARKER).unlink()
            path.rmdir()
        return opened(file, *options)

    monkeypatch.setattr(lock.os, "open", open_late)
    with runs.new_run(path):
        assert lock.holds(path) and not vanish
        assert HERE in elsewhere(writers(path)["fit"])
        saved(path, 1)
    assert load_run(path).epoch == 1


def test_between_the_two_renames_of_a_replacement_nobody_slips_in(tmp_path):
    path = tmp_path / "run"
    saved(path, 1)
    with runs.locked(path):
        path.rename(tmp_path / ".run.replaced")
        for name, write in writers(path).items():
            assert HERE in elsewhere(write), name
            assert [p.name for p in tmp_path.iterdir()] == [".run.replaced"]
        assert load_run(path).epoch == 1
    with runs.old_run(path):
        assert load_run(path).epoch == 1


def test_a_lock_on_a_folder_that_was_renamed_meanwhile_does_not_count(tmp_path, monkeypatch):
    saved(tmp_path / "run", 1)
    flock = fcntl.flock

    def late(*arguments):  # another process replaces the run just before
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        saved(tmp_path / "run", 2)
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with runs.locked(tmp_path / "run"):
        assert elsewhere(writers(tmp_path / "run")["old_run"]).startswith("BlockingIOError")
        assert elsewhere(writers(tmp_path / "elsewhere")["old_run"]) == "done"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, None])
def test_where_there_are_no_locks_it_is_said_and_the_training_goes_on(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", flock)
    *_, go = trainer("l-bfgs")
    with pytest.warns(RuntimeWarning, match=f"{tmp_path}/run cannot be locked") as caught:
        go(1, run=tmp_path / "run")
    assert len(caught) == 1 and load_run(tmp_path / "run").epoch == 1


def test_a_marker_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    opened = os.open

    def read_only(file, flags, *options):
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return opened(file, flags, *options)

    monkeypatch.setattr(lock.os, "open", read_only)
    with pytest.raises(OSError, match=f"cannot write {tmp_path}: Read-only file system"):
        writers(tmp_path)["old_run"]()
