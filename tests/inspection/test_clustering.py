"""Clustered weights are told from those that are not, with the right number."""

import json
import re

import pytest
import torch
from test_text import plain

from swsmix._kmeans import intervals
from swsmix.inspection import html_page
from swsmix.inspection.clustering import clustering
from swsmix.inspection.inspect import inspect

SEVEN = torch.tensor([-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3])


def drawn(values, share, noise, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(torch.tensor(share), size, replacement=True, generator=generator)
    return values[index] + noise * torch.randn(size, generator=generator)


def unclustered(name, size):
    generator = torch.Generator().manual_seed(size)
    normal = torch.randn(size, generator=generator)
    uniform = torch.rand(size, generator=generator)
    return {
        "gaussian": normal,
        "uniform": uniform,
        "laplace": torch.distributions.Laplace(0.0, 1.0).icdf(uniform.clamp(1e-6, 1 - 1e-6)),
        "cauchy": normal / torch.randn(size, generator=generator),
        "sparse": normal * (uniform < 0.1),
        "spike and slab": normal * torch.where(uniform < 0.9, 1e-3, 1.0),
        "two humps": normal + 2.0 * (uniform < 0.5),
        "outlier": torch.cat([0.05 * normal, torch.tensor([7.9])]),
        "bfloat16": normal.bfloat16(),
    }[name]


NAMES = ["gaussian", "uniform", "laplace", "cauchy", "sparse", "outlier", "bfloat16"]


@pytest.mark.parametrize("name", [*NAMES, "spike and slab", "two humps"])
@pytest.mark.parametrize("size", [104, 1000, 20_000])
def test_smooth_sparse_and_heavy_tailed_weights_are_not_clustered(name, size):
    found = clustering([unclustered(name, size)])
    assert not found and str(found).startswith("not clustered: 7 values would cost")


CLUSTERED = {
    "seven, rare, narrow": (7, drawn(SEVEN, [0.01] * 3 + [0.94] + [0.01] * 3, 1e-4, 20_000)),
    "seven, rare, wider": (7, drawn(SEVEN, [0.01] * 3 + [0.94] + [0.01] * 3, 5e-3, 20_000)),
    "seven, even": (7, drawn(SEVEN, [1 / 7] * 7, 0.015, 2000)),
    "ternary": (3, drawn(SEVEN[[0, 3, 6]], [0.3, 0.4, 0.3], 0.04, 2000)),
    "few weights": (4, drawn(SEVEN[[0, 2, 3, 6]], [0.25] * 4, 1e-3, 104)),
    "32": (32, drawn(torch.linspace(-1, 1, 32), [1 / 32] * 32, 4e-3, 20_000)),
    "shared": (200, torch.linspace(-1, 1, 200).repeat(30)),
    "snapped": (5, torch.tensor([0.0] * 90 + [0.1, 0.2, -0.1, -0.2] * 10)),
    "one value": (1, torch.full((50,), 0.3)),
}


@pytest.mark.parametrize("name", CLUSTERED)
def test_clustered_weights_are_told_with_their_number(name):
    number, w = CLUSTERED[name]
    found = clustering([w])
    assert found.num_values == number and str(found).startswith("clustered")
    assert clustering([1e30 * w.double()]).num_values == number


def test_noise_that_joins_the_clusters_ends_them():
    share = [1 / 7] * 7
    assert clustering([drawn(SEVEN, share, 0.018, 20_000)]).num_values == 7
    assert not clustering([drawn(SEVEN, share, 0.035, 20_000)])


def test_what_values_would_cost_is_that_of_exact_k_means():
    w = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = w.sort().values
    costs = {}
    for k in (2, 3):  # every division into intervals
        cuts = torch.combinations(torch.arange(1, 300), k - 1)
        ends = torch.cat([torch.zeros(len(cuts), 1), cuts, torch.full((len(cuts), 1), 300)], 1)
        sums, squares = (torch.cat([x.new_zeros(1), s.cumsum(0)]) for s in (x, x**2))
        ends = ends.long()
        within = squares[ends].diff(dim=1) - sums[ends].diff(dim=1) ** 2 / ends.diff(dim=1)
        costs[k] = (within.sum(1).min() / (x - x.mean()).square().sum()).item()
        assert clustering([w], k).cost == pytest.approx(costs[k], rel=1e-9)
    gaussian = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20_000) + 0.5) / 20_000)
    # Max (1960): the least distortion of 7 and 8 levels.
    assert clustering([gaussian], 7).cost == pytest.approx(0.0440, abs=5e-4)
    assert clustering([gaussian], 8).cost == pytest.approx(0.03454, abs=5e-4)


def test_intervals_end_with_one_for_each_cell():
    x = torch.arange(5.0).double() - 2.0
    ends = [e.tolist() for e in intervals(x, torch.cat([x.new_zeros(1), x.cumsum(0)]), 9, 512)]
    assert len(ends) == 5 and ends[0] == [0, 5] and ends[-1] == [0, 1, 2, 3, 4, 5]


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_inspect_says_of_random_weights_that_they_are_not_clustered(tmp_path):
    w = torch.randn(100, 200, generator=torch.Generator().manual_seed(0))
    torch.save({"a": w, "b": 2.0 * w[:50].t()}, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    text = plain(found)
    assert re.search(r"not clustered: 7 values would cost \d\.\d % of the variance", text)
    assert not re.search(r"\d\.\d\d  +100\.0 %", text)  # no bits
    data = data_of(html_page(found))
    assert data["summary"]["clusters in use"] == "none: not clustered"
    assert data["summary"]["bits per weight"] == "–"
    assert [(t["clusters"], t["bits"]) for t in data["layers"]] == [(None, None)] * 2
    assert data["groups"][0]["clustering"] == str(found.groups[0].clustering)
    three = inspect(tmp_path / "a.pt", num_components=3).groups[0]
    assert three.mixture.num_components == 3 and "3 values would cost" in str(three.clustering)


@pytest.mark.parametrize("number", [3, 12])
def test_inspect_fits_as_many_components_as_there_are_clusters(tmp_path, number):
    w = drawn(torch.linspace(-1, 1, number), [1 / number] * number, 5e-3, 4000)
    torch.save({"a": w.view(40, 100)}, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    (group,) = found.groups
    assert group.mixture.num_components == group.layers[0].num_clusters == number
    assert f"clustered: {number} values cost" in plain(found)
    assert data_of(html_page(found))["layers"][0]["clusters"] == number


def test_tensors_that_are_clustered_each_by_itself_are_counted(tmp_path):
    state = {
        f"w{i}": drawn(3.7**i * SEVEN + 0.1 * i, [1 / 7] * 7, 1e-4 * 3.7**i, 2000, i).view(20, 100)
        for i in range(14)
    }
    state["c"] = torch.randn(30, 100, generator=torch.Generator().manual_seed(0))
    torch.save(state, tmp_path / "a.pt")
    (group,) = inspect(tmp_path / "a.pt").groups
    assert not group.clustering and "but 14 of 15 tensors are" in str(group.clustering)
    alone = inspect(tmp_path / "a.pt", per_tensor=True).groups
    assert [g.clustering.num_values for g in alone] == [7] * 14 + [0]
