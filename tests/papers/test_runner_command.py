"""The command that runs a paper: results, facts and figures, and what it refuses."""

import json

import pytest
from fake_paper import calls, double, fake

from swsmix.problems.reproduction import runner, units
from swsmix.problems.reproduction.units import Unit


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
