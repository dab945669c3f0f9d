"""The runner of the papers: it resumes, keeps what is done, and says what is wrong."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from papers import runner, units  # noqa: E402
from papers.runner import Paper  # noqa: E402
from papers.units import Unit  # noqa: E402

NAMES = ("d", "b", "a", "c", "e")


# ---------------------------------------------------------------------------- a tiny fake paper


def double(log, name, stop=None):
    """Note the call, then give a result; or end as it is told."""
    with open(log, "a") as file:
        file.write(f"{name} ")
    if stop == "error" and not Path(log).with_name("mended").exists():
        raise ValueError("too few cases")
    if stop == "interrupt":
        raise KeyboardInterrupt
    return {"value": 2 * ord(name), "name": name}


def make(folder, stops=(), table="table", **more):
    stops = dict(stops)
    return [
        Unit(table, name, double, (str(folder / "calls"), name, stops.get(name)), **more)
        for name in NAMES
    ]


def calls(folder):
    file = folder / "calls"
    return file.read_text().split() if file.exists() else []


def lines(folder, table="table"):
    """The results without the seconds that they took."""
    return [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in units.read_table(folder / f"{table}.jsonl").values()
    ]


EXPECTED = [
    {"unit": name, "stamp": {}, "value": 2 * ord(name), "name": name} for name in sorted(NAMES)
]


def fake(folder, **changes):
    """A paper of two stages; the second reads what the first has written."""
    log = folder / "calls"

    def stages(places, seeds, *, quick):
        yield [Unit("first", f"s{s}", double, (str(log), "a")) for s in range(seeds)]
        known = units.read_table(places.results / "first.jsonl")
        total = sum(line["value"] for line in known.values())
        yield [Unit("second", f"of {total}", double, (str(log), "b"))]

    def draw(results, pictures, *, only=None):
        text = ",".join(units.read_table(results / "first.jsonl"))
        file = pictures / f"{only or 'all'}.txt"
        file.write_text(text)
        return [file]

    paper = Paper(
        folder=folder / "fake2026", description="Fake.", stages=stages, figures=["curve"],
        draw=draw, seeds=3, quick_seeds=1,
    )  # fmt: skip
    return dataclasses.replace(paper, **changes)


# --------------------------------------------------------------------------------------- laws


@given(first=st.integers(0, len(NAMES)), second=st.integers(0, len(NAMES)))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_run_in_pieces_gives_what_one_run_gives_and_runs_each_unit_once(
    first, second, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("pieces")
    everything = make(folder)
    runner.run_units(everything[:first], folder, 1)
    runner.run_units(everything[:second], folder, 1)
    assert runner.run_units(everything, folder, 1) == len(NAMES) - max(first, second)
    assert lines(folder) == EXPECTED  # in order of the keys, whatever the order of the work
    assert sorted(calls(folder)) == sorted(NAMES)
    before = (folder / "table.jsonl").read_bytes()
    assert runner.run_units(everything, folder, 1) == 0
    assert (folder / "table.jsonl").read_bytes() == before


def test_two_processes_give_what_one_gives(tmp_path):
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        assert runner.run_units(make(folder), folder, jobs) == len(NAMES)
        assert lines(folder) == EXPECTED
        assert sorted(calls(folder)) == sorted(NAMES)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_unit_that_fails_is_named_and_what_is_done_is_kept(tmp_path, jobs):
    stopping = make(tmp_path, {"a": "error"})
    with pytest.raises(RuntimeError, match=r"'a' of table failed: ValueError\('too few cases'\)"):
        runner.run_units(stopping, tmp_path, jobs)
    kept = {line["unit"] for line in lines(tmp_path)}
    assert {"d", "b"} <= kept and "a" not in kept
    assert len(calls(tmp_path)) <= 2 + jobs  # none begins once one has failed
    (tmp_path / "mended").touch()
    runner.run_units(stopping, tmp_path, jobs)
    assert lines(tmp_path) == EXPECTED
    assert sorted(calls(tmp_path)) == sorted([*NAMES, "a"])


def test_an_interruption_keeps_what_is_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        runner.run_units(make(tmp_path, {"a": "interrupt"}), tmp_path, 1)
    assert [line["unit"] for line in lines(tmp_path)] == ["b", "d"]
    runner.run_units(make(tmp_path), tmp_path, 1)
    assert lines(tmp_path) == EXPECTED


def test_another_stamp_is_made_anew_and_alone(tmp_path):
    runner.run_units(make(tmp_path, stamp={"seeds": 2}), tmp_path, 1)
    changed = make(tmp_path, stamp={"seeds": 2})
    changed[1] = dataclasses.replace(changed[1], stamp={"seeds": 3})
    assert units.unfinished(changed, tmp_path) == [changed[1]]
    runner.run_units(changed, tmp_path, 1)
    assert calls(tmp_path) == [*NAMES, NAMES[1]]
    assert {line["unit"]: line["stamp"]["seeds"] for line in lines(tmp_path)} == {
        name: 2 + (name == NAMES[1]) for name in NAMES
    }


def test_a_result_with_a_file_of_its_own_knows_its_stamp_files_and_checkpoints(tmp_path):
    network, checkpoints = tmp_path / "network", tmp_path / "checkpoints"
    checkpoints.mkdir()
    (one, *_) = make(
        tmp_path, {"d": "error"}, own_file=True, stamp={"subset": None}, leaves=(network,),
        checkpoints=checkpoints,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="too few"):
        runner.run_units([one], tmp_path, 1)
    assert checkpoints.is_dir()  # to go on from
    (tmp_path / "mended").touch()
    runner.run_units([one], tmp_path, 1)
    assert not checkpoints.exists()
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["value"] == 2 * ord("d") and found["subset"] is None and found["seconds"] >= 0
    assert units.unfinished([one], tmp_path) == [one]  # what it should have left is lost
    network.touch()
    assert units.unfinished([one], tmp_path) == []
    quick = dataclasses.replace(one, stamp={"subset": 100})
    assert units.unfinished([quick], tmp_path) == [quick]


def another_run(folder, name):
    """What a second run does at the same time."""
    mine = Unit("table", "other", double, (str(Path(folder) / "calls"), "o"))
    runner.run_units([mine], Path(folder), 1)
    return {"name": name}


def test_two_runs_at_once_lose_nothing(tmp_path):
    runner.run_units([Unit("table", "mine", another_run, (str(tmp_path), "m"))], tmp_path, 1)
    assert [line["unit"] for line in lines(tmp_path)] == ["mine", "other"]


@pytest.mark.parametrize(
    "damage", [b'{"unit": "a", "val', b"<<<<<<< HEAD", b"[1]", b'{"value": 1}', b"\xff\xfe", b""]
)
def test_a_damaged_line_is_an_error_that_names_file_and_line(tmp_path, damage):
    runner.run_units(make(tmp_path), tmp_path, 1)
    file = tmp_path / "table.jsonl"
    text = file.read_bytes().splitlines()
    text[2] = damage
    file.write_bytes(b"\n".join(text) + b"\n")
    with pytest.raises(units.DamagedResultError, match=r"line 3 of .*table\.jsonl"):
        runner.run_units(make(tmp_path), tmp_path, 1)
    assert file.read_bytes().splitlines() == text  # and it is left as it is
    file.write_bytes(b"\n".join(text[:2] + text[3:]) + b"\n")
    runner.run_units(make(tmp_path), tmp_path, 1)
    assert lines(tmp_path) == EXPECTED


def test_a_unit_with_two_lines_and_a_damaged_file_are_errors_too(tmp_path):
    runner.run_units(make(tmp_path), tmp_path, 1)
    file = tmp_path / "table.jsonl"
    file.write_bytes(file.read_bytes() + file.read_bytes().splitlines()[0])
    with pytest.raises(units.DamagedResultError, match=r"line 6 of .*second result of 'a'"):
        units.read_table(file)
    (one, *_) = make(tmp_path, own_file=True)
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(units.DamagedResultError, match=r"d\.json is damaged"):
        runner.run_units([one], tmp_path, 1)


# -------------------------------------------------------------------------------- the command


def test_a_whole_run_writes_results_facts_and_figures_and_only_once(tmp_path, capsys):
    paper, out = fake(tmp_path), tmp_path / "out"
    arguments = ["--seeds", "2", "--jobs", "1", "--out", str(out)]
    runner.main(paper, arguments)
    assert calls(tmp_path) == ["a", "a", "b"]
    assert [*units.read_table(out / "results/second.jsonl")] == [f"of {4 * ord('a')}"]
    assert (out / "figures/all.txt").read_text() == "s0,s1"
    facts = out / "results/run.json"
    about = json.loads(facts.read_text())
    assert about["command"] == f"swsmix reproduce fake2026 --seeds 2 --jobs 1 --out {out}"
    assert (about["seeds"], about["jobs"]) == (2, 1)
    assert {"minutes", "minutes_of_units", "machine", "torch", "python", "swsmix"} <= {*about}
    before = facts.read_bytes()
    runner.main(paper, [*arguments, "--jobs", "2"])
    assert facts.read_bytes() == before  # nothing was run: it says how the results were made
    assert capsys.readouterr().out.count("all.txt") == 2


def test_facts_that_a_kill_left_behind_are_written_again(tmp_path, monkeypatch):
    paper, out = fake(tmp_path), tmp_path / "out"
    arguments = ["--seeds", "2", "--jobs", "1", "--out", str(out)]
    call = Unit.__call__
    monkeypatch.setattr(Unit, "__call__", lambda unit: (call(unit)[0], 60.0))
    save = runner.save_json

    def killed(file, about):
        if about["minutes_of_units"] == 3.0:  # after the second stage
            raise KeyboardInterrupt
        save(file, about)

    monkeypatch.setattr(runner, "save_json", killed)
    with pytest.raises(SystemExit):
        runner.main(paper, arguments)
    facts = out / "results/run.json"
    assert not facts.exists()  # rather than those of the first stage
    monkeypatch.setattr(runner, "save_json", save)
    runner.main(paper, arguments)
    assert json.loads(facts.read_text())["minutes_of_units"] == 3.0
    assert len(calls(tmp_path)) == 3


def test_only_makes_one_table_and_knows_the_others(tmp_path):
    paper, out = fake(tmp_path), tmp_path / "out"
    runner.main(paper, ["--only", "first", "--jobs", "1", "--out", str(out)])
    assert sorted(p.name for p in (out / "results").iterdir()) == ["first.jsonl", "run.json"]
    with pytest.raises(SystemExit, match="the tables are first, second; got 'third'"):
        runner.main(paper, ["--only", "third", "--jobs", "1", "--out", str(out)])


def test_a_figure_is_drawn_from_the_folder_or_else_from_the_checkout(tmp_path, capsys):
    paper, out = fake(tmp_path), tmp_path / "out"
    checkout = paper.folder / "results"
    checkout.mkdir(parents=True)
    runner.run_units([Unit("first", "ours", double, (str(tmp_path / "calls"), "a"))], checkout, 1)
    runner.main(paper, ["--figure", "curve", "--out", str(out)])
    assert (out / "figures/curve.txt").read_text() == "ours"
    assert "has no results: drawn from" in capsys.readouterr().err
    assert not (out / "results").exists()
    runner.main(paper, ["--seeds", "1", "--jobs", "1", "--out", str(out)])
    runner.main(paper, ["--figure", "curve", "--out", str(out)])
    assert (out / "figures/curve.txt").read_text() == "s0"
    with pytest.raises(SystemExit, match="the figures are curve; got 'line'"):
        runner.main(paper, ["--figure", "line"])


def test_a_quick_run_or_other_seeds_do_not_replace_the_checkouts_results(tmp_path):
    quick = ["--quick", "--out", str(fake(tmp_path).folder)]
    for fixed, arguments in ((True, ["--seeds", "4"]), (True, quick), (False, quick)):
        paper = fake(tmp_path, fixed_seeds=fixed, prepare=lambda: pytest.fail("it began"))
        with pytest.raises(SystemExit, match=f"{arguments[0]}.*another folder with --out"):
            runner.main(paper, arguments)


def test_a_missing_data_set_and_a_damaged_table_are_one_clear_line(tmp_path):
    def missing():
        raise FileNotFoundError("no MNIST files here")

    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="no MNIST files here"):
        runner.main(fake(tmp_path, prepare=missing), ["--out", str(out)])
    (out / "results").mkdir(parents=True)
    (out / "results/first.jsonl").write_text("{\n")
    with pytest.raises(SystemExit, match=r"line 1 of .*first\.jsonl is damaged"):
        runner.main(fake(tmp_path), ["--jobs", "1", "--out", str(out)])


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_numbers_below_one_are_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        runner.main(fake(tmp_path), [option, "0"])
    assert "1 or more; got '0'" in capsys.readouterr().err


def test_the_readme_is_updated_in_the_checkout_alone_and_the_quick_run_is_checked(tmp_path):
    seen = []
    paper = fake(
        tmp_path,
        record=lambda results: seen.append(("record", results)),
        check_quick=lambda results: seen.append(("quick", results)),
    )
    out = tmp_path / "out"
    runner.main(paper, ["--quick", "--jobs", "1", "--out", str(out)])
    assert seen == [("quick", out / "results")]
    runner.main(paper, ["--jobs", "1", "--out", str(paper.folder)])
    assert seen[1:] == [("record", paper.folder / "results")]


# ------------------------------------------------------------------------------------ signals

PROGRAM = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from papers import runner, units
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
    table = checkout / "out/results/table.jsonl"
    assert [*units.read_table(table)] == ["a", "b"]
    (checkout / "mended").touch()
    program = [sys.executable, str(checkout / "papers/fake/run.py")]
    command = [*program, "--jobs", "1", "--out", str(checkout / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line["name"] for line in units.read_table(table).values()] == [*"abcd"]


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
from papers import signals
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
