"""The runner of the papers: it resumes, keeps what is done, and says what is wrong."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from fake_paper import EXPECTED, NAMES, calls, double, lines, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from swsmix.problems.reproduction import runner, units
from swsmix.problems.reproduction.units import Unit


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


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_the_bar_says_how_far_it_is_whatever_the_width_and_the_name(width):
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    bar = runner._bar(console)
    task = bar.add_task("", total=300, completed=12, left="about 1:23:45 left")
    bar.update(task, description="sunspots-validation: soft-sharing, 8 components, em, fold 3")
    console.print(bar.get_renderable())
    lines = console.file.getvalue().splitlines()
    (line,) = [line for line in lines if line.strip()]
    assert len(line) <= width and "12/300" in line and "about 1:23:45 left" in line
    assert "sunspots" in line or width < 60
