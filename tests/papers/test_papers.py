"""The papers' reproductions: the command, their rules, their bounds, and that they resume."""

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import swsmix
from swsmix.problems import data

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from papers.nowlan1992 import (  # noqa: E402
    figures,
    intervals,
    run,
    selection,
    shift,
    sunspots,
    tables,
)
from papers.nowlan1992.methods import SharingRecipe  # noqa: E402
from swsmix.problems.reproduction.runner import Places  # noqa: E402
from swsmix.problems.reproduction.units import unfinished  # noqa: E402

FLOAT = torch.float64


def reproduce(*arguments, cwd=ROOT, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "swsmix", "reproduce", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


# ------------------------------------------------------------------------------ the command


def test_alone_it_lists_every_paper_with_its_figures_and_minutes():
    listed = reproduce()
    for folder in (ROOT / "papers").glob("*/paper.toml"):
        paper = tomllib.loads(folder.read_text())
        assert folder.parent.name in listed and paper["title"] in listed
        assert f"{paper['minutes']['full']:g} minutes" in listed
        assert all(figure["name"] in listed for figure in paper["figures"])
        assert all(figure["title"] in listed for figure in paper["figures"])
    assert "None" not in listed


def test_the_list_keeps_to_the_terminals_width(monkeypatch, capsys):
    from swsmix.cli import reproduce as command

    for width in (40, 60, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        command._reproduce(None, {})
        listed = capsys.readouterr().out
        assert max(map(len, listed.splitlines())) <= width
        for name in (*figures.DRAWINGS, "pareto", "nowlan1992", "sunspots-hindsight.jsonl"):
            assert name in listed


def test_an_unknown_paper_and_a_figure_without_results_are_clear_errors(tmp_path):
    assert "the papers are nowlan1992, " in reproduce("nowlan1993", code=1)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "portraits.jsonl").touch()  # not the checkout's, then
    missing = reproduce("nowlan1992", "--figure", "shift-cases", "--out", tmp_path, code=1)
    assert "needs results of shift" in missing


def test_outside_a_checkout_it_says_what_it_needs(tmp_path, monkeypatch):
    from swsmix.cli import reproduce as command

    installed = tmp_path / "site-packages" / "swsmix" / "__init__.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(swsmix, "__file__", str(installed))
    with pytest.raises(FileNotFoundError, match="needs a checkout of the project"):
        command._papers()
    monkeypatch.chdir(ROOT / "tests")  # the current folder's parents count
    assert command._papers() == ROOT / "papers"


def test_every_figure_is_in_the_papers_list_and_the_other_way_round():
    paper = tomllib.loads((ROOT / "papers/nowlan1992/paper.toml").read_text())
    assert [figure["name"] for figure in paper["figures"]] == list(figures.DRAWINGS)


@pytest.mark.slow
def test_the_quick_run_finishes_and_points_the_right_way(tmp_path):
    said = reproduce("nowlan1992", "--quick", "--seeds", 1, "--jobs", 1, "--out", tmp_path)
    assert "soft-sharing minus back-propagation: +" in said
    pictures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    slow = {n for n in figures.DRAWINGS if n.startswith("bayes-")} | {"sunspots-validation"}
    assert pictures >= set(figures.DRAWINGS) - slow
    places = Places(tmp_path / "results", tmp_path / "figures", tmp_path)
    stages = run.stages(places, 1, quick=True)  # the next run finds nothing to do
    assert [unit for stage in stages for unit in unfinished(stage, places.results)] == []


def test_the_readme_takes_the_present_numbers(tmp_path):
    line = {"methods": {"weight decay": dict.fromkeys(("one", "objective", "agreement"), 90.0)}}
    line["methods"]["weight decay"]["ensemble"] = 91.5
    (tmp_path / "shift.jsonl").write_text(json.dumps({"unit": "n100-000", **line}) + "\n")
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "papers/nowlan1992/README.md").read_text())
    for _ in range(2):  # once more changes nothing
        figures.fill_(readme, tmp_path)
        assert readme.read_text().count("| weight decay | 89.8 ± 3.0 | 90.0 | 90.0 |") == 1
    assert "## Open" in readme.read_text()


def test_the_quick_runs_bound_can_fail(tmp_path):
    def results(shared, plain):
        methods = {
            "soft-sharing, 10 components, em": {"ensemble": shared},
            "back-propagation": {"ensemble": plain},
        }
        line = {"unit": "n100-000", "seconds": 1.0, "methods": methods}
        (tmp_path / "shift.jsonl").write_text(json.dumps(line) + "\n")

    results(98.0, 90.0)
    figures.check_direction(tmp_path)
    results(90.0, 90.0)
    with pytest.raises(SystemExit, match="should win"):
        figures.check_direction(tmp_path)


# ----------------------------------------------------------------------------------- the rules


def test_validation_learns_nothing_that_it_is_scored_on():
    schemes = sunspots.folds(209)
    for learned, held in schemes.values():
        assert not (learned & held).any() and held.any(1).all()
    blocks, rolling = schemes["blocks"][1], schemes["rolling"]
    assert (blocks.sum(0) == 1).all()
    for learned, held in zip(*rolling, strict=True):  # only the past is learned
        assert learned.nonzero().max() < held.nonzero().min()
        assert held.sum() == 35


def test_validation_reads_no_year_after_1920(monkeypatch):
    def score(first):
        """With every number from the year `first` on replaced."""
        true = data.sunspots(scale=1.0, dtype=FLOAT)
        series = torch.where(true.years >= first, 50.0, true.series)
        windows = series.unfold(0, 13, 1)
        fake = dataclasses.replace(true, inputs=windows[:, :-1], targets=windows[:, -1])
        monkeypatch.setattr(data, "sunspots", lambda **_: fake)
        result = sunspots.validate("early stopping", {"iterations": 5}, [0])
        monkeypatch.undo()
        return result

    assert score(1921) == score(2009)
    assert score(1920) != score(2009)


def test_the_setting_with_the_lowest_mean_log_score_is_chosen():
    method = [(key, s) for key, name, s in selection.candidates() if name == "weight decay"]
    scores = {
        key: {"blocks": {"folds": [0.2 + 0.01 * i]}, "rolling": {"folds": [0.3 - 0.002 * i, 0.3]}}
        for i, (key, _) in enumerate(method)
    }
    one = [("weight decay", method[0][1])]
    assert selection.chosen(scores, "single") == {"weight decay": one, "all others": one}
    # One fold of large errors does not decide: the last setting halves a small error.
    for key, _ in method:
        scores[key]["blocks"] = {"folds": [0.1, 1.0]}
    scores[method[-1][0]]["blocks"] = {"folds": [0.05, 1.2]}
    assert selection.chosen(scores, "single")["weight decay"][0][1] == method[-1][1]


def test_shift_cases_to_learn_to_choose_by_and_to_test_are_disjoint():
    for problem in shift.PROBLEMS.values():
        drawn = shift.sample(3, problem)
        parts = [set(map(tuple, x.tolist())) for x in (drawn.x, drawn.unlabelled, drawn.x_test)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == problem.num_cases + 1640


def test_distinct_values_counts_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-1.0, 0.0, 2.0], dtype=FLOAT)
    w = centres[torch.randint(3, (200,), generator=generator)]
    noise = torch.randn(200, generator=generator, dtype=FLOAT)
    assert shift.distinct_values(w) == shift.distinct_values(w + 0.01 * noise) == 3
    assert shift.distinct_values(noise) > 5


def test_intervals_cover_and_compare_in_pairs():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(40):
        e = intervals.estimate(rng.normal(1.0, 2.0, 20))
        covered.append(e.low <= 1.0 <= e.high)
    assert np.mean(covered) > 0.8
    noise, common = rng.normal(0, 0.1, 20), rng.normal(0, 5, 20)
    found = intervals.compare(common + 0.2 + noise, common)
    assert found.difference.low > 0 and found.p_t < 0.01  # the pairs' common part drops out


# -------------------------------------------------------------------------- resuming, the same


def test_the_committed_results_are_those_of_the_recipes_in_the_code(monkeypatch):
    results = run.HERE / "results"

    def missing():
        stages = run.stages(Places(results, results, results), run.SEEDS, quick=False)
        left = [unit for stage in stages for unit in unfinished(stage, results)]
        return {f"{unit.table}: {unit.key.partition('-')[0]}" for unit in left}

    assert missing() == set()
    monkeypatch.delitem(shift.OTHERS, "squashed")  # the slip that a first run had
    assert missing() == {"shift: squashed"}


def test_other_numbers_of_seeds_do_not_replace_the_committed_results(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "--seeds", "3"])
    monkeypatch.setattr(run, "stages", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(SystemExit, match=r"--seeds 3 would replace.*with --out"):
        run.main()


def test_the_same_seeds_give_the_same_numbers(monkeypatch):
    setting = {"components": 3, "rounds": 2, "warm_iterations": 5}
    name = "soft-sharing, 3 components, em"
    first, again = (sunspots.validate(name, setting, [0, 1]) for _ in range(2))
    assert first == again
    assert first != sunspots.validate(name, setting, [2, 3])
    small = {"restarts": 2, "modes": ["em"], "quick": True}
    monkeypatch.setattr(shift, "STOPS", (3, 10))
    monkeypatch.setattr(shift, "SHARING", {"em": SharingRecipe(rounds=2, warm_iterations=5)})
    first, again = (shift.unit(3, "n50", **small) for _ in range(2))
    assert first == again
    assert first != shift.unit(4, "n50", **small)


def test_the_confirmation_needs_the_final_runs_networks():
    setting = {"iterations": 3, "scale": {"divisor": 100.0}}
    members = [["early stopping", setting], ["early stopping", setting | {"iterations": 5}]]
    line = json.loads(json.dumps(sunspots.final(members, [0, 1])))
    assert len(line["arv"]["test"]) == 2 and len(line["forecasts"]["late"]) == 24
    sunspots._trained.cache_clear()
    found = sunspots.confirm("early stopping", line)
    assert len(found["forecasts"]["confirm"]) == 29
    line["forecasts"]["late"][7] += 1.0
    with pytest.raises(ValueError, match="off what results"):
        sunspots.confirm("early stopping", line)


def test_a_committees_forecast_is_the_mean_of_its_members():
    one, other = (("early stopping", {"iterations": n}) for n in (3, 5))
    window = torch.full((1, 2, 12), 40.0, dtype=FLOAT)
    both = sunspots.trained([one, other], [0, 1])(window)
    alone = [sunspots.trained([member], [0, 1])(window) for member in (one, other)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    assert not torch.allclose(alone[0], alone[1])


def test_both_normalisers_are_in_the_table_and_years_are_paired():
    def line(error):
        splits, forecasts = ("train", "test", "late"), {}
        for split in splits:
            _, target = data.sunspots(scale=1.0, dtype=FLOAT).split(split)
            squares = 1535.0 * torch.linspace(0.5, 1.5, len(target), dtype=FLOAT)
            forecasts[split] = (target + error * squares.sqrt()).tolist()
        return {
            "arv": {split: [0.1, 0.1] for split in splits},
            "ensemble": dict.fromkeys(splits, 0.2),
            "forecasts": forecasts,
        }

    final = {
        f"{name}, by {by}": line(error)
        for name, error in (("soft-sharing, 8 components, em", 0.0), ("weight decay", 1.0))
        for by in selection.BY
    }
    text = tables.sunspot_tables(final, {})
    assert "0.100 ± 0.000 (0.103)" in text and "0.200 (0.205)" in text
    assert text.count("| -1.000 [") == 4  # ensembles and committees, 1921-55 and 1956-79
