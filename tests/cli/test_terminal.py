"""Foreign back ends, narrow encodings, closed pipes and Ctrl-C while a command starts."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from swsmix._progress import watched
from swsmix.cli import _interrupts, _streams
from swsmix.codec import load_compressed

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
LATIN = ASCII | {"PYTHONIOENCODING": "latin-1"}


@pytest.fixture
def folder(tmp_path):
    weights = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    save_file({"läyer→.weight": weights}, tmp_path / "net.safetensors")
    return tmp_path


def run(folder, *arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "swsmix", *arguments], cwd=folder, check=False, stdout=stdout,
        stderr=subprocess.PIPE, env=os.environ | environment,
    )  # fmt: skip


BACKENDS = """
import os, sys, torch, swsmix
assert "matplotlib" not in sys.modules
for backend in sys.argv[1:]:
    if os.fork() == 0:
        os.environ["MPLBACKEND"] = backend
        import swsmix.plots, matplotlib
        chosen = dict.__getitem__(matplotlib.rcParams, "backend")
        print(os.environ["MPLBACKEND"], chosen == "svg", flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_foreign_backend_breaks_nothing_and_a_known_one_is_kept():
    backends = ["module://not.there", "nonsense", "inline", "svg"]
    done = subprocess.run(
        # An older matplotlib calls deprecated functions of newer pyparsing, whatever the backend.
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", BACKENDS,
         *backends], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{b} {b == 'svg'}" for b in backends]


def test_inspect_draws_under_a_foreign_backend(folder):
    done = run(folder, "inspect", "net.safetensors", "--out", "f", MPLBACKEND="module://not.there")
    assert done.returncode == 0 and (folder / "f" / "clusters.png").exists()


IN_TURN = """
import itertools, sys
from swsmix.cli import main
for between, words in itertools.groupby(sys.argv[1:], lambda word: word == "then"):
    if not between:
        sys.argv = ["swsmix", *words]
        try:
            main()
        except SystemExit as end:
            print("\\nended", end.code or 0, flush=True)
"""


@pytest.mark.parametrize("environment", [ASCII, LATIN], ids=["ascii", "latin-1"])
def test_any_encoding_shows_tables_and_names(folder, environment):
    commands = (
        ("compress", "net.safetensors", "--out", "ö.sws"),
        ("inspect", "net.safetensors", "--no-figures"),
        ("inspect", "ö.sws", "--bytes"),
        ("decompress", "ö.sws", "--out", "ö.pt"),
        ("guide", "mathematics"),
        ("decompress", "ö.sws", "--out", "ö.nonsense"),
    )
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, *[w for words in commands for w in (*words, "then")]],
        cwd=folder, check=False, capture_output=True, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    *shown, failed, rest = re.split(rb"\nended (\d)\n", done.stdout)[::2]
    codes = re.findall(rb"\nended (\d)\n", done.stdout)
    assert codes == [b"0"] * 5 + [b"1"] and all(map(bytes.strip, shown))
    assert failed.strip() == rest == b"" and b".nonsense" in done.stderr
    assert list(load_compressed(folder / "ö.sws")) == ["läyer→.weight"]


def test_characters_that_an_encoding_lacks_have_a_likeness():
    _streams.codecs.register_error("swsmix", _streams._degraded)
    text = "± → │─┌ █ ö € \udcff"
    assert text.encode("ascii", "swsmix") == rb"+- -> |-+ @ \xf6 \u20ac \udcff"
    assert text.encode("latin-1", "swsmix").decode("latin-1") == r"± -> |-+ @ ö \u20ac \udcff"


def test_a_reader_that_leaves_stops_neither_the_work_nor_fails_it(folder):
    read, write = os.pipe()
    os.close(read)
    done = run(folder, "inspect", "net.safetensors", "--out", "figures", stdout=write)
    os.close(write)
    assert done.returncode == 0 and not done.stderr.strip()
    assert len(list((folder / "figures").iterdir())) == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_is_written_is_no_failure_if_only_the_printing_fails(folder):
    with open("/dev/full", "wb") as full:
        done = run(folder, "compress", "net.safetensors", stdout=full)
    assert done.returncode == 0 and b"the rest is not printed: No space left" in done.stderr
    assert load_compressed(folder / "net.sws")


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_no_number_beside_the_progress_bar_is_cut(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    note = "objective -1.402  train 0.0949  validation 0.1172  clusters 7+12"
    list(watched([1, 2], "std 0.125 (3 of 8)", shown=True, note=lambda: note, transient=False))
    shown = capsys.readouterr().err
    assert {*note.split(), "0.125", "(3", "8)", "2/2"} <= {*shown.split()}
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown or width < 40


START = """
import sys
from swsmix.cli import _interrupts
_interrupts.install()
print("go", file=sys.stderr, flush=True)
from swsmix.cli import main
sys.argv = ["swsmix", *{arguments!r}]
main()
"""


@pytest.mark.parametrize("delay", [0.05, 0.3])
@pytest.mark.parametrize("command", ["compress", "inspect", "decompress"])
def test_ctrl_c_during_the_imports_leaves_no_traceback(folder, command, delay):
    code = START.format(arguments=[command, "net.safetensors"])
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr.readline() == b"go\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].strip() == b""
    assert process.returncode == _interrupts.INTERRUPTED


def test_ctrl_c_while_python_m_swsmix_imports_the_commands_ends_quietly():
    # Frames as of `python -m swsmix`: an import whose importer is the program's own file.
    code = compile("frame = sys._getframe()", "<frozen importlib._bootstrap>", "exec")
    for importer, quiet in (
        (_interrupts._PROGRAM, True),
        (_interrupts._LIBRARY + "/prior.py", False),
    ):
        space = {"sys": sys, "code": code}
        exec(compile("exec(code)", importer, "exec"), space)
        assert _interrupts._importing(space["frame"]) is quiet


def test_ctrl_c_while_the_library_imports_in_its_work_is_an_ordinary_interrupt():
    assert not _interrupts._importing(sys._getframe())
