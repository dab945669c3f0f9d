"""A run that is interrupted or killed: its processes end, and the next run goes on."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swsmix.problems.reproduction import runner, units

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from swsmix.problems.reproduction import runner, units
from swsmix._files import replacing

HERE = Path({here!r})

def work(name):
    with replacing(HERE / "scratch" / name) as temporary:
        (HERE / "began" / name).write_text(str(os.getpid()))
        if name > "b" and not (HERE / "mended").exists():
            time.sleep(600)
        temporary.write_text(name)
    return {{"name": name}}

def stages(places, seeds, *, quick):
    yield [units.Unit("table", name, work, (name,)) for name in "abcd"]

if __name__ == "__main__":
    runner.main(runner.Paper(
        folder=HERE, description="Fake.", stages=stages, figures=[], draw=lambda *_, **__: [],
        seeds=1, quick_seeds=1,
    ))
"""


def wait_for(what, seconds=300):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def is_running(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), 0)
        return True
    return False


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one paper, where `swsmix reproduce fake` runs it."""
    paper = tmp_path / "papers" / "fake"
    for folder in (paper, *(tmp_path / name for name in ("swsmix", "scratch", "began", "out"))):
        folder.mkdir(parents=True)
    (paper / "paper.toml").touch()
    (paper / "run.py").write_text(PROGRAM.format(root=str(ROOT), here=str(tmp_path)))
    return tmp_path


def started(checkout, jobs):
    """`swsmix reproduce` while it works on `jobs` units, with the processes that do so."""
    command = [sys.executable, "-m", "swsmix", "reproduce", "fake", "--jobs", str(jobs)]
    process = subprocess.Popen(
        [*command, "--out", str(checkout / "out")], cwd=checkout, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    stuck = [checkout / "began" / name for name in "cd"[:jobs]]
    table = checkout / "out/results/table.jsonl"
    wait_for(lambda: all(began.exists() and began.read_text() for began in stuck))
    wait_for(lambda: table.exists() and len(table.read_text().splitlines()) == 2)
    return process, [int(began.read_text()) for began in stuck]


def goes_on(checkout):
    """The next run finds no litter and does the rest."""
    assert sorted(p.name for p in (checkout / "scratch").iterdir()) == ["a", "b"]
    results = checkout / "out/results"
    assert [*units.read_table(results / "table.jsonl")] == ["a", "b"]
    (checkout / "mended").touch()
    ((*rest,),) = runpy.run_path(checkout / "papers/fake/run.py")["stages"](None, 1, quick=False)
    assert runner.run_units(rest, results, 1) == 2
    assert [line["name"] for line in units.read_table(results / "table.jsonl").values()] == [
        *"abcd"
    ]


def by_a_terminal(process):
    os.killpg(process.pid, signal.SIGINT)


def to_one(process):
    process.send_signal(signal.SIGTERM)


def to_one_twice(process):
    to_one(process)
    to_one(process)


def to_all(process):
    os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes")
@pytest.mark.parametrize(
    ("jobs", "send", "code"),
    [
        *((1, by_a_terminal, 130), (2, by_a_terminal, 130)),
        *((1, to_one, 143), (2, to_one_twice, 143), (2, to_all, 143)),
    ],
)
def test_a_signal_ends_every_process_leaves_no_litter_and_the_next_run_goes_on(
    checkout, jobs, send, code
):
    process, workers = started(checkout, jobs)
    try:
        send(process)
        _, said = process.communicate(timeout=300)
        assert not any(map(is_running, workers))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code and "Traceback" not in said, said
    assert "the same command goes on from here" in said
    goes_on(checkout)


@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes")
def test_workers_end_with_a_run_that_is_killed(checkout):
    process, workers = started(checkout, 2)
    try:
        process.kill()
        process.communicate(timeout=300)
        wait_for(lambda: not any(map(is_running, workers)), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    goes_on(checkout)


IMPORTING = """
import sys, time
sys.path.insert(0, {root!r})
from swsmix.problems.reproduction import signals
signals.end_quietly()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="exit codes of signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_run_imports_is_no_traceback(number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING.format(root=str(ROOT))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == code


@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes")
def test_after_ctrl_c_the_command_waits_until_the_run_has_tidied_up(tmp_path):
    tidy = (
        "import pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "try:\n    (here / 'began').touch(); time.sleep(600)\n"
        "except KeyboardInterrupt:\n    time.sleep(1); (here / 'tidy').touch(); raise SystemExit(7)"
    )
    call = "import sys; from swsmix.cli.reproduce import _call; sys.exit(_call(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", call, sys.executable, "-c", tidy],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait_for((tmp_path / "began").exists)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) == 7
    assert (tmp_path / "tidy").exists()
