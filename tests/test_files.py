"""Writing: whole or not at all, one mode, and each failure one sentence that names the path."""

import ast
import errno
import os
import signal
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import swsmix
from swsmix import _files, plots
from swsmix._files import check_writable, make_folder, replacing, save_json
from swsmix.bayes import Posterior
from swsmix.bayes.layout import Layout
from swsmix.compression import save_compressed
from swsmix.inspection import checkpoints

STATE = {"w": torch.linspace(-1, 1, 5000).reshape(50, 100)}
DRAWS = Posterior(torch.zeros(1, 4000, 2), Layout({"w": (2,)}, {}, {}, "categorical", None), {}, {})
WRITERS = {  # every kind of file that the package writes, by the code that writes it
    "net.sws": lambda path: save_compressed(path, {"w": torch.randn(50, 100)}),
    "net.safetensors": lambda path: checkpoints.write(path, STATE),
    "net.pt": lambda path: checkpoints.write(path, STATE),
    "posterior.safetensors": DRAWS.save,
    "figure.png": lambda path: plots.save(plots.entropy({"a": 0.5}), path),
    "figure.pdf": lambda path: plots.save(plots.entropy({"a": 0.5}), path),
    "figure.svg": lambda path: plots.save(plots.entropy({"a": 0.5}), path),
    "results.json": lambda path: save_json(path, {"a": [0.5] * 5000}),
}


@contextmanager
def full_disk(size):
    """No file grows beyond so many bytes, for this process; as on a full disk, EFBIG."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextmanager
def umask(mask):
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_has_the_mode_that_the_umask_says_new_and_replaced(tmp_path, name):
    for mask in (0o022, 0o077, 0o002):
        with umask(mask):
            WRITERS[name](tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_the_old_file_stays_and_nothing_else_is_left(tmp_path, name):
    file = tmp_path / name
    file.write_text("old")
    with full_disk(1000), pytest.raises(OSError) as caught:
        WRITERS[name](file)
    assert str(caught.value) == (
        f"cannot write {file}: File too large; the file that was there is kept"
    )
    assert caught.value.errno == errno.EFBIG
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("when", ["open", "fsync", "replace"])
def test_what_the_system_says_is_said_with_the_path_whenever_it_says_it(
    tmp_path, monkeypatch, code, when
):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code), "some temporary name")

    file = tmp_path / "results.json"
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, when) if when == "replace" else (_files.os, when)), fail)
        with pytest.raises(type(OSError(code, ""))) as caught:
            save_json(file, {})
    assert str(caught.value) == f"cannot write {file}: {os.strerror(code)}"
    assert caught.value.errno == code and not list(tmp_path.iterdir())


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    file = tmp_path / "results.json"
    save_json(file, {"a": 1})
    for error in (ValueError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, replacing(file) as temporary:
            temporary.write_text("half")
            raise error
        assert caught.value is error
    assert file.read_text() == '{\n  "a": 1\n}\n' and list(tmp_path.iterdir()) == [file]


def test_places_where_no_file_can_be_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path, kind, words in (
        (tmp_path / "none" / "x.json", FileNotFoundError, f"folder {tmp_path}/none is not there"),
        (tmp_path / "file" / "x.json", OSError, f"folder {tmp_path}/file is not a folder"),
        (tmp_path, IsADirectoryError, "it is a folder"),
        (tmp_path / "pipe", OSError, "it is not a regular file"),
        (tmp_path / ("x" * 300), OSError, "File name too long"),
    ):
        for write in (check_writable, lambda p: save_json(p, {})):
            with pytest.raises(kind, match=words) as caught:
                write(path)
            assert str(caught.value).startswith(f"cannot write {path}: ")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"the folder {tmp_path} cannot be written"):
        check_writable(tmp_path / "x.json")
    with pytest.raises(OSError, match=f"cannot write {tmp_path}/file/folder: Not a directory"):
        make_folder(tmp_path / "file" / "folder")


def test_of_a_link_the_file_it_points_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "results.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real" / "results.json")
    save_json(link, {})
    assert link.is_symlink() and (tmp_path / "real" / "results.json").read_text() == "{}\n"
    assert len(list(tmp_path.rglob("*"))) == 3


WRITING = {"write_text", "write_bytes", "savefig", "save_file", "touch", "mkstemp"}
ELSEWHERE = {  # a picture in memory; a checkpoint in its temporary folder
    "files.py savefig", "style.py savefig", "saving.py write_bytes", "claiming.py touch",
    "recovery.py touch",
}  # fmt: skip


def test_every_write_of_the_package_goes_through_one_place():
    """No `write_text`, `save_file` and so on but inside `with replacing(...)`."""
    stray = []
    for file in sorted(Path(swsmix.__file__).parent.rglob("*.py")):
        tree = ast.parse(file.read_text())
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            above, node = [], call
            while node in parents:
                above.append(node := parents[node])
            safe = any(
                isinstance(n, ast.With) and "replacing(" in ast.unparse(n.items[0]) for n in above
            )
            if name in WRITING and not safe:
                stray.append(f"{file.name} {name}")
    assert set(stray) == ELSEWHERE and len(stray) == len(ELSEWHERE)


def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path):
    place, other = tmp_path / "net.sws", tmp_path / "other.sws"
    left = []
    for file in (place, other):
        child = os.fork()
        if child == 0:
            with replacing(file) as temporary:
                temporary.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        (new,) = {*tmp_path.iterdir()} - {*left}
        left.append(new)
    with replacing(place) as first:
        assert not left[0].exists() and left[1].exists()  # only ours
        first.write_bytes(b"first")
        with replacing(place) as second:
            second.write_bytes(b"second")
        assert first.exists() and place.read_bytes() == b"second"
    assert place.read_bytes() == b"first"
    assert {*tmp_path.iterdir()} == {place, left[1]}
