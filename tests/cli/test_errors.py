"""What ends a command: a sentence for bad input, a traceback for a fault of ours, a full disk."""

import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swsmix.codec import encode, load_books, load_compressed

importlib.import_module("swsmix.cli")
app = sys.modules["swsmix.cli.app"]


def raised(statement, name="swsmix.somewhere"):
    """The error of a statement in a module of that name."""
    try:
        exec(compile(statement, "somewhere.py", "exec"), {"__name__": name})
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


CLEAR = (
    "raise ValueError('so')", "raise OSError('so')", "raise TypeError('so')", "open('/none/there')",
    "raise ImportError('so: pip install so')", "raise FloatingPointError('so')", "import nowhere_",
    "raise RuntimeError('so')", "raise MemoryError", "import torch; torch.empty(1 << 55)",
    "int('so')", "f = lambda: f()\nf()",
)  # fmt: skip
FAULTS = (
    "1 / 0", "None + 1", "[][0]", "{}['so']", "None.so", "so", "assert False", "2.0 ** 10000",
    "from swsmix import so", "import swsmix.so", "import torch; torch.zeros(2) @ torch.zeros(3)",
    "len(1)", "next(iter([]))",
)  # fmt: skip


@pytest.mark.parametrize("statement", CLEAR)
def test_bad_input_is_a_sentence(statement):
    error = raised(statement)
    assert app._is_clear(error)
    sentence = app._sentence(error)
    assert sentence and "Traceback" not in sentence


@pytest.mark.parametrize("statement", FAULTS)
def test_a_fault_of_the_program_is_not_dressed_up_as_bad_input(statement):
    assert not app._is_clear(raised(statement))


def test_what_others_raise_on_purpose_is_not_ours():
    assert not app._is_clear(raised("raise RuntimeError('so')", "torch.nn"))


def test_a_fault_ends_the_command_with_its_traceback():
    code = "from swsmix.cli import app as a, main\nimport sys\n"
    code += "sys.modules['swsmix.cli.app'].app = lambda: 1 / 0\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr


@pytest.fixture
def folder(tmp_path):
    save_file({"a.weight": torch.randn(20, 30)}, tmp_path / "net.safetensors")
    (tmp_path / "net.sws").write_bytes(encode({"a": torch.zeros(4, 4)}))
    return tmp_path


def swsmix(folder, *arguments, stdout=subprocess.PIPE):
    return subprocess.run(
        [sys.executable, "-m", "swsmix", *arguments], cwd=folder, stdout=stdout,
        stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [("guide",), ("guide", "cost"), ("inspect", "net.sws", "--bytes"), ("decompress", "--help")],
)  # fmt: skip
def test_output_that_cannot_be_printed_is_a_failure(folder, arguments):
    with open("/dev/full", "w") as full:
        done = swsmix(folder, *arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.strip() == "swsmix: the rest is not printed: No space left on device"


@pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices as on Linux")
def test_only_regular_files_are_opened(folder):
    os.mkfifo(folder / "pipe.bin")
    inspect = sys.modules["swsmix.cli.inspect"]
    for special in (folder / "pipe.bin", Path("/dev/zero")):
        for read in (
            load_compressed, load_books, partial(_call, "decompress", out=folder / "x.pt"),
            partial(_call, "compress", out=folder / "x.sws"),
            lambda path: inspect.inspect([path]),
            lambda path: inspect.inspect([path], bytes_=True),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="not a regular file"):
                read(special)
    with pytest.raises(FileNotFoundError, match="not there"):
        load_compressed(folder / "none.sws")
    assert sorted(p.name for p in folder.iterdir()) == ["net.safetensors", "net.sws", "pipe.bin"]


def test_a_file_that_is_there_is_replaced_only_if_asked_to(folder):
    before = (folder / "net.sws").read_bytes()
    whole = (folder / "net.safetensors").read_bytes()
    for command, source, target in (
        ("compress", "net.safetensors", "net.sws"), ("decompress", "net.sws", "net.safetensors"),
    ):  # fmt: skip
        for named in ({}, {"out": folder / target}):
            with pytest.raises(FileExistsError, match=rf"{target} is there already: .*--force"):
                _call(command, folder / source, **named)
        assert (folder / "net.sws").read_bytes() == before
        assert (folder / "net.safetensors").read_bytes() == whole
    _call("compress", folder / "net.safetensors", force=True)
    assert (folder / "net.sws").read_bytes() != before
    _call("decompress", folder / "net.sws", force=True)
    assert (folder / "net.safetensors").read_bytes() != whole
    _call("decompress", folder / "net.sws", out=folder / "net.safetensors", force=True)
    _call("compress", folder / "net.safetensors", out=folder / "net.sws", force=True)


def _call(command, *arguments, **options):
    module = sys.modules[f"swsmix.cli.{command}"]
    getattr(module, command)(*arguments, quiet=True, **options)
