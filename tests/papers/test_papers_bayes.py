"""The Bayesian section of the 1992 paper: its stages, its sight, its figures."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from papers.nowlan1992 import bayes, drawings_bayes, figures  # noqa: E402

# Draws as few as these are told not to be trusted.
pytestmark = pytest.mark.filterwarnings("ignore::swsmix.bayes.PosteriorWarning")
SHORT = bayes.Length(chains=2, draws=30, warmup=50, max_depth=4)
NAMES = ("8 components, full Bayes", "8 components, empirical Bayes")


@pytest.fixture(scope="module")
def lines():
    return {
        name: {"unit": name, "seconds": 1.0} | json.loads(json.dumps(bayes.final(name, SHORT)))
        for name in NAMES
    }


def test_what_final_reports_agrees_with_itself(lines):
    line = lines[NAMES[0]]
    for split, num in (("train", 209), ("test", 35), ("late", 24)):
        part = line[split]
        assert len(part["mean"]) == len(part["ranks"]) == num
        low, high = (part["quantiles"][q] for q in ("0.05", "0.95"))
        assert all(a < b for a, b in zip(low, high, strict=True))
        inside, cases, *_ = part["coverage"]["90"]
        central = sum(0.05 <= rank <= 0.95 for rank in part["ranks"])
        assert cases == num and abs(inside - central) <= 0.05 * num
        _, y = bayes.numbers(*bayes.data.SUNSPOT_SPLITS[split])
        off = (torch.tensor(part["mean"]) - y).square().mean() / 1535
        assert float(off) == pytest.approx(part["arv"], rel=1e-3)
        assert part["arv_error"] > 0.0
    wide = [
        b - a for a, b in zip(*(line["fan"]["quantiles"][q] for q in ("0.05", "0.95")), strict=True)
    ]
    assert wide[-1] > wide[0]
    assert sum(line["clusters"]["occupied"].values()) == pytest.approx(1.0, abs=1e-3)


def test_the_monte_carlo_error_is_the_spread_of_the_arv_from_run_to_run():
    generator = torch.Generator().manual_seed(0)
    y, bias = (50.0 * torch.randn(30, generator=generator, dtype=bayes.FLOAT) for _ in range(2))

    def run(draws=800, memory=0.95):
        noise = torch.randn(4, draws, 30, generator=generator, dtype=bayes.FLOAT)
        walk, outputs = noise[:, 0], []
        for step in noise.unbind(1):
            walk = memory * walk + (1 - memory**2) ** 0.5 * step
            outputs.append(y + bias + 30.0 * walk)
        return torch.stack(outputs, 1)

    runs = [run() for _ in range(40)]
    arvs = torch.stack([(r.mean((0, 1)) - y).square().mean() / 1535 for r in runs])
    errors = torch.tensor([bayes.arv_error(r, y) for r in runs])
    assert 0.7 < errors.mean() / arvs.std() < 1.4
    # Draws in disorder look independent: the error would be far too small.
    order = torch.randperm(800, generator=generator)
    assert bayes.arv_error(runs[0][:, order], y) < 0.4 * arvs.std()


def test_empirical_bayes_holds_the_mixture_full_bayes_does_not(lines):
    held, free = (torch.tensor(lines[n]["draws"]["mean"]) for n in NAMES[::-1])
    assert (held == held[0]).all()
    assert free.std(0).min() > 0.0


def test_the_score_reads_no_year_after_1920(monkeypatch):
    read = bayes.numbers

    def watched(first, last):
        assert last <= 1920
        return read(first, last)

    monkeypatch.setattr(bayes, "numbers", watched)
    found = bayes.score("one Gaussian, full Bayes", bayes.Length(1, 4, 20, 2))
    assert found["cases"] == [35, 35, 35]
    with pytest.raises(AssertionError):  # the watch works
        bayes.final("one Gaussian, full Bayes", bayes.Length(1, 4, 20, 1))


def test_figures_and_table_are_made_from_the_lines_alone(lines, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    text = "\n".join(json.dumps({"stamp": {}} | line) for line in lines.values()) + "\n"
    (results / "bayes.jsonl").write_text(text)
    for name in drawings_bayes.DRAWINGS:
        figures.draw(results, tmp_path, only=name)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    decay = {"arv": {split: [0.1, 0.2] for split in ("train", "test", "late")}}
    table = drawings_bayes.table(lines, {}, {"weight decay, by single": decay})
    assert table.count("\n") == 2 + 1 + len(NAMES) + 1
    assert "| weight decay | 0.1500 ± 0.0707 |" in table
    assert all(name in table for name in NAMES)
