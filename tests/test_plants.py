"""The plants of figures/plants.py: their Bayes errors are right, and a few are grown and found."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[1]))
from figures import plants


def planted(centre, share, std):
    plant = plants.Plant.__new__(plants.Plant)
    plant.k, plant.spread = len(centre), 1.0
    plant.centre, plant.share, plant.std = map(np.array, (centre, share, std))
    return plant


@pytest.mark.parametrize("gap", [1.0, 4.0, 9.0])
def test_two_equal_centres_err_by_the_tail_beyond_the_middle(gap):
    errors = planted([0.0, gap], [0.5, 0.5], [1.0, 1.0]).bayes_errors()
    np.testing.assert_allclose(errors, norm.sf(gap / 2), rtol=0.03)


def test_a_few_beside_many_lose_more_than_they_take():
    plant = planted([0.0, 5.0], [0.999, 0.001], [1.0, 1.0])
    cut = 2.5 + np.log(999) / 5
    few = max(norm.cdf(cut - 5.0), 999 * norm.sf(cut) / (999 * norm.sf(cut) + norm.sf(cut - 5.0)))
    assert plant.bayes_errors()[1] == pytest.approx(few, rel=0.05)


def test_the_errors_are_those_of_samples_in_a_nested_plant():
    plant = planted([0.0, 0.3, 2.0], [0.5, 0.3, 0.2], [1.0, 0.01, 0.2])
    rng = np.random.default_rng(0)
    owner = rng.choice(3, 400_000, p=plant.share)
    goes = plant.most_probable(plant.centre[owner] + plant.std[owner] * rng.normal(size=400_000))
    right = np.bincount(owner[owner == goes], minlength=3)
    lost, others = (1 - right / np.bincount(x, minlength=3) for x in (owner, goes))
    np.testing.assert_allclose(plant.bayes_errors(), np.maximum(lost, others), atol=0.005)


def test_an_exact_zero_is_separable_from_a_slab_around_it():
    errors = planted([0.0, 0.1], [0.9, 0.1], [plants.POINT, 0.1]).bayes_errors()
    assert errors.max() < 1e-4


def test_a_run_of_three_plants_finds_all_and_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "plants.jsonl"
    plants.main(["--first", "20111", "--plants", "2", "--out", str(out)])
    first = out.read_text()
    plants.main(["--first", "20111", "--plants", "3", "--out", str(out)])
    assert out.read_text().startswith(first)
    records = list(map(json.loads, out.read_text().splitlines()))
    assert [r["seed"] for r in records] == [20111, 20112, 20113]
    assert all(r["count"] for r in records), records
    assert not any(r["missed"] or r["not_snapped"] or r["miscounted"] for r in records), records
    written = out.with_suffix(".md").read_text()
    assert "3 of 3 (100.0 %)" in written and "seeds 20111 to 20113" in written


def test_the_nats_ahead_are_those_of_the_same_density():
    record = {}
    plant, mixture, _ = plants.measure(20112)
    plants.compare(plant, mixture, record)
    assert abs(record["ahead_of_best"]) < 30.0  # of 6,000 weights: a wrong unit costs thousands
    assert record["ahead_of_first"] >= record["ahead_of_best"]


def test_a_component_most_of_whose_weights_are_anothers_belongs_to_none():
    plant, mixture, record = plants.measure(20113)
    far, own = plants._fates(plant, mixture)
    assert own.sum() == plant.n and (own.sum(1) == plant.count).all()
    assert far.sum() >= record["weights_beyond"]
