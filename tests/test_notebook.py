"""What a notebook shows of a prior and a history; figures of whatever a user has at hand."""

import builtins
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

from swsmix import GaussianMixture, MixturePrior, fit, plots

MIXTURE = GaussianMixture([0.5, 0.5], [-0.1, 0.1], [0.05, 0.05])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def rows_of(html):
    root = ET.fromstring(f"<div>{html}</div>")  # well-formed
    return {row[0].text: [cell.text for cell in row[1:]] for row in root.iter("tr")}


@pytest.fixture(scope="module")
def history():
    net, x = network(), torch.randn(40, 6)
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.Adam(net.parameters())
    loss, data = nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long())
    return fit(net, loss, data, optimizer=optimizer, epochs=2, prior=prior, progress=False)


def test_a_prior_shows_its_mixtures_and_escapes_the_names():
    prior = MixturePrior(network(), 3, groups={"a<b>": "*.weight"})
    html = prior._repr_html_()
    for name in ("mixing", "mean", "std"):
        values = getattr(prior.mixtures["a<b>"], name).tolist()
        assert rows_of(html)[name] == [f"{value:.3g}" for value in values]
    assert "a&lt;b&gt;" in html and "0.weight, 2.weight" in html


@pytest.mark.parametrize("groups", ["global", "tensor", {"50% [in].x": "0.*", "a]b": "2.weight"}])
def test_a_priors_line_has_the_names_of_its_groups_and_tensors(groups):
    net = network()
    prior = MixturePrior(net, 3, groups=groups)
    head, *lines = repr(prior).split("\n")
    assert head == "MixturePrior(mode='em')" and "%2E" not in repr(prior)
    names = [name for name, _ in net.named_parameters()]
    for line, (group, own) in zip(lines, prior.selection.groups.items(), strict=True):
        assert line.startswith(f"  {group}: GaussianMixture(num_components=3")
        assert line.endswith(f" on {', '.join(own)}") and set(own) <= set(names)


def test_a_priors_line_of_many_tensors_counts_them_and_control_characters_are_escaped():
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9)))
    assert repr(MixturePrior(deep, 2)).endswith("on 0.weight, 1.weight, 2.weight, 6 more")
    assert "\x1b" not in repr(MixturePrior(deep, 2, groups={"a\x1b[2J": "*"}))


def test_a_history_shows_the_first_and_the_last_record(history):
    rows = rows_of(history._repr_html_())
    first, last = history.scalars["objective"][0], history.scalars["objective"][-1]
    assert rows["objective"] == [f"{first:.6g}", f"{last:.6g}"]
    assert rows["clusters of all"][1] == f"{history.num_clusters('all')[-1]:.6g}"


def test_a_history_is_a_data_frame(history, monkeypatch):
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = history.to_pandas()
    assert len(frame) == len(history) == 3
    assert frame["objective"].tolist() == history.scalars["objective"]
    assert frame["clusters/all"].tolist() == history.num_clusters("all").tolist()


def test_without_pandas_the_error_says_what_to_do(history, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install pandas, or use history\.scalars"):
        history.to_pandas()


def bars(figure):
    return [p.get_data().values for ax in figure.axes for p in ax.patches if hasattr(p, "get_data")]


def given():
    net = network()
    prior = MixturePrior(net, 3)
    weights = torch.cat([p.detach().flatten() for n, p in net.named_parameters() if p.ndim > 1])
    return net, prior, weights


@pytest.mark.parametrize("name", ["clusters", "responsibilities"])
def test_a_figure_of_a_prior_is_that_of_its_weights_and_its_mixture(name):
    net, prior, weights = given()
    draw, mixture = getattr(plots, name), prior.mixtures["all"]
    pair = (weights, mixture) if name == "clusters" else (mixture, weights)
    wanted = bars(draw(*pair))
    other = (prior,) if name == "clusters" else (mixture, prior)
    network_first = (net, mixture) if name == "clusters" else (mixture, net)
    array = (weights.numpy(), prior) if name == "clusters" else (prior, weights.numpy())
    for arguments in ((prior,), other, network_first, array):
        found = bars(draw(*arguments))
        assert len(found) == len(wanted) > 0
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert draw(net).axes and draw(weights).axes and draw(weights.numpy()).axes


def test_of_several_groups_one_can_be_named_or_each_has_a_panel():
    prior = MixturePrior(network(), 3, groups="tensor")
    assert len(plots.clusters(prior).axes) == 2
    assert plots.clusters(prior, group="2.weight").axes
    with pytest.raises(ValueError, match=r"must be one of \['0.weight', '2.weight'\].*name one"):
        plots.clusters(prior, group="1.weight")
    with pytest.raises(ValueError, match=r"must be one of .* got None; name one"):
        plots.clusters(torch.randn(9), prior)


def test_before_after_layers_and_hinton_take_what_one_has():
    net, prior, weights = given()
    assert plots.before_after(weights.numpy() + 0.1, prior).axes
    assert plots.before_after(weights, net, MIXTURE).axes
    for each in (prior, net, {n: p.numpy(force=True) for n, p in net[0].named_parameters()}):
        assert len(plots.layers(each).axes) == 2
        assert len(plots.entropy(each).axes[0].patches) == 2
    assert len(plots.layers(weights.numpy()).axes) == len(plots.entropy(weights).axes) == 1
    assert plots.hinton(net[0]).axes and plots.hinton(net[0].weight.numpy(force=True)).axes
    assert len(plots.hinton(net).axes) == 2
