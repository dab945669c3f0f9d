"""The papers' reproductions: their programs against the library, their rules, their bounds."""

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch

import swsmix
from swsmix import GaussianMixture, GaussianNoise, HyperPrior, MixturePrior, data, nets

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papers.nowlan1992 import (  # noqa: E402
    explore,
    figures,
    forecasts,
    intervals,
    lbfgs,
    penalties,
    run,
    sampling,
    selection,
    shift,
    sunspots,
    tables,
)
from papers.nowlan1992 import nets as batch  # noqa: E402
from papers.nowlan1992.methods import Recipe  # noqa: E402

FLOAT = torch.float64


def reproduce(*arguments, cwd=ROOT, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "swsmix.cli", "reproduce", *map(str, arguments)],
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


def test_an_unknown_paper_and_a_figure_without_results_are_clear_errors(tmp_path):
    assert "the papers are ['nowlan1992'" in reproduce("nowlan1993", code=1)
    missing = reproduce("nowlan1992", "--figure", "shift-cases", "--out", tmp_path, code=1)
    assert "wants results of shift" in missing


def test_outside_a_checkout_it_says_what_it_wants(tmp_path, monkeypatch):
    from swsmix.cli import reproduce as command

    installed = tmp_path / "site-packages" / "swsmix" / "__init__.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(swsmix, "__file__", str(installed))
    with pytest.raises(FileNotFoundError, match="wants a checkout of the project"):
        command._papers()
    monkeypatch.chdir(ROOT / "tests")  # the current folder's parents count
    assert command._papers() == ROOT / "papers"


def test_every_figure_is_in_the_papers_list_and_the_other_way_round():
    paper = tomllib.loads((ROOT / "papers/nowlan1992/paper.toml").read_text())
    assert [figure["name"] for figure in paper["figures"]] == list(figures.DRAWINGS)


@pytest.mark.slow
def test_the_quick_run_finishes_and_points_the_right_way(tmp_path):
    said = reproduce("nowlan1992", "--quick", "--out", tmp_path)
    assert "soft-sharing minus back-propagation: +" in said
    pictures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    slow = {n for n in figures.DRAWINGS if n.startswith("bayes-")} | {"sunspots-validation"}
    assert pictures >= set(figures.DRAWINGS) - slow
    before = (tmp_path / "results" / "shift.jsonl").read_bytes()
    reproduce("nowlan1992", "--quick", "--out", tmp_path)  # nothing is run again
    assert (tmp_path / "results" / "shift.jsonl").read_bytes() == before


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


# ------------------------------------------------------------------- the batch and the library


def problem(likelihood, networks=3, num=40):
    generator = torch.Generator().manual_seed(0)
    if likelihood == "binary":
        x, y = data.shift(num, generator=generator, dtype=FLOAT)
        hidden = 10
    else:
        x, y = forecasts.numbers(1712, 1711 + num)
        x, y, hidden = x / 191.0, y / 191.0, 8
    cases = batch.Cases(x, y, torch.ones(networks, num, dtype=FLOAT), likelihood, hidden)
    return cases, cases.start(range(networks), 1.0)


def module(cases, theta):
    """The library's network with a row's weights."""
    h, n = cases.hidden, cases.num_weights
    make = nets.shift_net if cases.likelihood == "binary" else nets.sunspot_net
    net = make(dtype=FLOAT)
    with torch.no_grad():
        net.hidden.weight.copy_(theta[: n - h].view(h, -1))
        net.output.weight.copy_(theta[None, n - h : n])
        net.hidden.bias.copy_(theta[n : n + h])
        net.output.bias.copy_(theta[n + h])
    return net


@pytest.mark.parametrize("likelihood", ["binary", "gaussian"])
def test_each_row_is_the_librarys_network_loss_and_gradient(likelihood):
    cases, theta = problem(likelihood)
    value, gradient = cases.data_term(theta, torch.arange(3))
    for row in range(3):
        net = module(cases, theta[row])
        noise = GaussianNoise(0.3).to(FLOAT)
        loss = torch.nn.BCEWithLogitsLoss() if likelihood == "binary" else noise
        total = len(cases.targets) * loss(net(cases.inputs), cases.targets)
        total.backward()
        grads = [net.hidden.weight, net.output.weight, net.hidden.bias, net.output.bias]
        grads += [noise.log_variance] if likelihood == "gaussian" else []
        expected = torch.cat([p.grad.reshape(-1) for p in grads])
        torch.testing.assert_close(value[row], total.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient[row], expected, rtol=1e-5, atol=1e-5)


def test_a_case_weight_of_0_leaves_the_case_out():
    cases, theta = problem("gaussian")
    share = cases.share.clone()
    share[:, 30:] = 0.0
    fewer = dataclasses.replace(
        cases, inputs=cases.inputs[:30], targets=cases.targets[:30], share=cases.share[:, :30]
    )
    left_out = dataclasses.replace(cases, share=share)
    rows = torch.arange(3)
    for a, b in zip(left_out.data_term(theta, rows), fewer.data_term(theta, rows), strict=True):
        torch.testing.assert_close(a, b)


def mixtures(networks=3, k=4):
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand(3, networks, k, generator=generator, dtype=FLOAT)
    ones = torch.ones(networks, dtype=FLOAT)
    mixing = draw[0] / draw[0].sum(-1, keepdim=True)
    return penalties.Sharing(
        mixing, 2 * draw[1] - 1, 0.2 + draw[2], 0.7 * ones, 0.3 * ones, 1.5 * ones, pace=0.5
    )


def library_prior(cases, theta, sharing, row, mode):
    mixture = GaussianMixture(sharing.mixing[row], sharing.mean[row], sharing.std[row])
    hyper = HyperPrior(std=sharing.hyper_std[row].item(), std_count=sharing.hyper_count[row].item())
    return MixturePrior(module(cases, theta[row]), 4, mode=mode, initial=mixture, hyper=hyper)


def test_soft_sharing_is_the_librarys_penalty_up_to_a_constant_and_its_gradient():
    cases, theta = problem("gaussian")
    sharing, n = mixtures(), cases.num_weights
    rest, rows = sharing.rest(), torch.arange(3)
    value, by_weights, by_rest = sharing(theta[:, :n], rest, rows)
    held, by_weights_held, _ = sharing(theta[:, :n], rest[:, :0], rows)
    torch.testing.assert_close(value, held)
    torch.testing.assert_close(by_weights, by_weights_held)
    constants = []
    for row in range(3):
        prior = library_prior(cases, theta, sharing, row, "gradient")
        penalty = 0.7 * prior.penalty()
        penalty.backward()
        constants.append((value[row] - penalty).item())
        weights = torch.cat([p.grad.reshape(-1) for p in prior.parameters_of("all").values()])
        torch.testing.assert_close(by_weights[row], weights, rtol=1e-6, atol=1e-6)
    assert np.ptp(constants) < 1e-6
    # The mixtures' own gradients, in this paper's parameters, by central differences.
    for j in range(12):
        step = torch.zeros_like(rest)
        step[:, j] = 1e-5
        up, down = (sharing(theta[:, :n], rest + s, rows)[0] for s in (step, -step))
        torch.testing.assert_close(by_rest[:, j], (up - down) / 2e-5, rtol=1e-5, atol=1e-5)


def test_the_batched_em_step_is_the_librarys():
    cases, theta = problem("gaussian")
    sharing, n = mixtures(), cases.num_weights
    priors = [library_prior(cases, theta, sharing, row, "em") for row in range(3)]
    sharing.em_step_(theta[:, :n])
    for row, prior in enumerate(priors):
        prior.em_step_()
        for name in ("mixing", "mean", "std"):
            ours, theirs = getattr(sharing, name)[row], getattr(prior.mixtures["all"], name)
            torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "penalty",
    [
        penalties.Decay(torch.full((3,), 0.4, dtype=FLOAT)),
        penalties.Elimination(torch.ones(3, dtype=FLOAT), torch.full((3,), 0.7, dtype=FLOAT)),
    ],
)
def test_the_other_penalties_gradients_are_right(penalty):
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=FLOAT)
    _, gradient, _ = penalty(weights, weights[:, :0], torch.arange(3))
    for j in range(5):
        step = torch.zeros_like(weights)
        step[:, j] = 1e-6
        up, down = (penalty(weights + s, weights[:, :0], torch.arange(3))[0] for s in (step, -step))
        torch.testing.assert_close(gradient[:, j], (up - down) / 2e-6, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["student", "squashed"])
def test_other_noise_and_a_squashed_output_have_the_right_gradient(kind):
    cases, theta = problem("gaussian")
    if kind == "student":
        cases = explore.Student(**vars(cases))
    else:
        cases = dataclasses.replace(cases, squashed=True)
    rows = torch.arange(3)
    _, gradient = cases.data_term(theta, rows)
    for j in (0, 50, 100, 105, 112, 113):
        step = torch.zeros_like(theta)
        step[:, j] = 1e-6
        up, down = (cases.data_term(theta + s, rows)[0] for s in (step, -step))
        torch.testing.assert_close(gradient[:, j], (up - down) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_without_data_the_draws_are_the_priors(temperature):
    chains, std = 24, 0.4
    x = torch.zeros(4, 2, dtype=FLOAT)
    cases = batch.Cases(x, x[:, 0], torch.zeros(chains, 4, dtype=FLOAT), "binary", 2)
    one = torch.ones(chains, 1, dtype=FLOAT)
    prior = penalties.Sharing(one, 0 * one, std * one, one[:, 0], std * one[:, 0], 1e7 * one[:, 0])
    drawn = sampling.sample(
        cases, cases.start(range(chains), 0.3), prior, burn=60, keep=120, temperature=temperature
    )
    w = drawn[..., : cases.num_weights]  # mu is free to wander: within a net
    assert w.std(2).square().mean().sqrt().item() == pytest.approx(std * temperature**0.5, rel=0.06)


# ------------------------------------------------------------------------------------ L-BFGS


def rosenbrock(theta, rows):
    x = theta.detach().requires_grad_()
    value = (100 * (x[:, 1:] - x[:, :-1].square()).square() + (1 - x[:, :-1]).square()).sum(-1)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def test_lbfgs_finds_the_minima_that_scipy_finds():
    start = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=FLOAT)
    found, value = lbfgs.minimise(rosenbrock, start, 200)
    for row in range(6):
        theirs = scipy.optimize.minimize(scipy.optimize.rosen, start[row].numpy(), method="BFGS")
        assert value[row] <= theirs.fun + 1e-8
        torch.testing.assert_close(rosenbrock(found, None)[0][row], value[row])


def test_the_problems_of_a_batch_do_not_see_each_other():
    cases, theta = problem("gaussian", networks=4)
    penalty = penalties.Decay(torch.tensor([0.1, 0.3, 1.0, 3.0], dtype=FLOAT))
    together, _ = batch.train(cases, theta, penalty, 25)
    one = dataclasses.replace(cases, share=cases.share[2:3])
    alone, _ = batch.train(one, theta[2:3], penalties.Decay(penalty.std[2:3]), 25)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-6, atol=1e-8)


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
    for setting in shift.SETTINGS.values():
        drawn = shift.sample(3, setting)
        parts = [set(map(tuple, x.tolist())) for x in (drawn.x, drawn.unlabelled, drawn.x_test)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == setting.num_cases + 1640


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


def test_a_finished_unit_is_not_run_again_and_tables_are_in_order(tmp_path):
    calls = tmp_path / "calls"
    units = [run.Unit("table", k, _count, (str(calls), k), {}, {"seeds": 2}) for k in ("b", "a")]
    run.work_off(units[:1], tmp_path, 1)
    run.work_off(units, tmp_path, 1)
    assert calls.read_text().split() == ["b", "a"]
    run.work_off([dataclasses.replace(units[0], stamp={"seeds": 3})], tmp_path, 1)
    assert calls.read_text().split() == ["b", "a", "b"]  # another stamp: made anew
    lines = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [line["unit"] for line in lines] == ["a", "b"] and lines[1]["name"] == "b"


def test_the_committed_shift_results_are_those_of_the_recipes_in_the_code(monkeypatch):
    def missing():
        table = run.Table(run.HERE / "results" / "shift.jsonl")
        units = [u for stage in run.stages(run.HERE / "results", 20, quick=False) for u in stage]
        return {u.key.partition("-")[0] for u in units if u.table == "shift" and not table.has(u)}

    assert missing() == set()
    monkeypatch.delitem(shift.OTHERS, "squashed")  # the slip that a first run had
    assert missing() == {"squashed"}


def test_other_numbers_of_seeds_do_not_replace_the_committed_results(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "--seeds", "3"])
    monkeypatch.setattr(run, "stages", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(SystemExit, match="with --out"):
        run.main()


def _count(path, name):
    with open(path, "a") as file:
        file.write(name + " ")
    return {"name": name}


def test_the_same_seeds_give_the_same_numbers(monkeypatch):
    setting = {"components": 3, "rounds": 2, "warm_iterations": 5}
    name = "soft-sharing, 3 components, em"
    first, again = (sunspots.validate(name, setting, [0, 1]) for _ in range(2))
    assert first == again
    assert first != sunspots.validate(name, setting, [2, 3])
    small = {"restarts": 2, "modes": ["em"], "quick": True}
    monkeypatch.setattr(shift, "STOPS", (3, 10))
    monkeypatch.setattr(shift, "SHARING", {"em": Recipe(rounds=2, warm_iterations=5)})
    first, again = (shift.unit(3, "n50", **small) for _ in range(2))
    assert first == again
    assert first != shift.unit(4, "n50", **small)


def test_the_confirmation_wants_the_final_runs_networks():
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
