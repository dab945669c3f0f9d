"""Several seeds of a built-in problem: means, spreads, ensembles, and the middle member's run."""

from dataclasses import replace

import pytest
import torch

from swsmix import load_run
from swsmix.problems.recipes import load_problem
from swsmix.problems.seeds import train_seeds


def problem(name, epochs=2):
    return replace(load_problem(name, dtype=torch.float64), epochs=epochs, iterations=6)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds") / "run"
    return train_seeds(problem("sunspots"), range(3, 6), run=str(path), progress=False,
                       baseline_progress=False), path  # fmt: skip


def networks(outcome_, path):
    """All members, from the run's checkpoint."""
    (file,) = path.glob("checkpoint-*/training.pt")
    theta = torch.load(file, weights_only=True)["ensemble"]["trainer"]["theta"]
    nets = [problem("sunspots").make_net(torch.Generator().manual_seed(0)) for _ in theta]
    for net, row in zip(nets, theta, strict=True):
        parts = row[:-1].split([p.numel() for p in net.parameters()])
        with torch.no_grad():
            for p, part in zip(net.parameters(), parts, strict=True):
                p.copy_(part.view(p.shape))
    return nets


def test_rows_are_means_and_standard_deviations_over_the_members(outcome):
    found, path = outcome
    asked = problem("sunspots")
    for part in ("train", "validation", "test"):
        x, y = getattr(asked, part)
        values = torch.stack([asked.measure(n(x), y) for n in networks(found, path)])
        assert found.rows["soft weight-sharing"][part] == pytest.approx(values.mean().item())
        assert found.spread["soft weight-sharing"][part] == pytest.approx(values.std().item())


def test_an_ensembles_prediction_is_the_average_of_its_members(outcome):
    found, path = outcome
    asked = problem("sunspots")
    x, y = asked.test
    mean = torch.stack([n(x) for n in networks(found, path)]).mean(0)
    expected = asked.measure(mean, y).item()
    assert found.rows["soft weight-sharing, ensemble"]["test"] == pytest.approx(expected)
    assert expected < found.rows["soft weight-sharing"]["test"]  # squares are convex


def test_logits_are_averaged_as_probabilities():
    logits = torch.tensor([[9.0], [-1.0], [-1.0]])
    assert load_problem("shift").average(logits).sign() == torch.sign(
        logits.sigmoid().mean(0) - 0.5
    )


def test_the_run_is_that_of_the_middle_member_by_validation(outcome):
    found, path = outcome
    asked = problem("sunspots")
    x, y = asked.validation
    nets = networks(found, path)
    order = sorted(range(3), key=lambda i: asked.measure(nets[i](x), y).item())
    saved = load_run(path)
    for name, t in nets[order[1]].state_dict().items():
        torch.testing.assert_close(saved.network[name], t)
        torch.testing.assert_close(found.net.state_dict()[name], t)
    (seed,) = (v for k, v in found.facts.items() if k.startswith("seed of the run folder"))
    assert seed == 3 + order[1]


def test_the_strength_of_weight_decay_is_the_best_on_validation_on_average(outcome):
    found, _ = outcome
    (name,) = (n for n in found.rows if n.startswith("weight decay, std"))
    chosen = float(name.split("std ")[1].split(",")[0])
    asked = problem("sunspots")
    scores = {}
    for std in asked.decay_stds:
        alone = train_seeds(replace(asked, decay_stds=(std,)), range(3, 6), progress=False,
                            baseline_progress=False)  # fmt: skip
        scores[std] = alone.rows[f"weight decay, std {std:g}, by validation"]["validation"]
    assert chosen == min(scores, key=scores.get)
    assert found.rows[name]["validation"] == pytest.approx(scores[chosen], rel=1e-3)


def test_small_images_under_adam_are_an_ensemble_too():
    torch.manual_seed(0)
    small = replace(load_problem("shift"), lr=1e-3, batch_size=20, epochs=2)
    found = train_seeds(small, range(2), progress=False, baseline=False)
    assert len(found.history) == 3 and list(found.spread) == [
        "soft weight-sharing", "the same, snapped to its centres",
    ]  # fmt: skip
