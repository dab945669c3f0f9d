"""Pruning and k-means, the method that the paper's rows are compared with."""

import torch
from torch import nn

from papers.ullrich2017 import gradual_pruning as pruning
from papers.ullrich2017.images import Images
from papers.ullrich2017.settings import Setting


def test_the_share_that_is_left_falls_from_all_to_what_is_asked():
    shares = [pruning.kept_at(0.1, t / 10) for t in range(11)]
    assert shares[0] == 1.0 and abs(shares[-1] - 0.1) < 1e-12
    steps = [a - b for a, b in zip(shares, shares[1:], strict=False)]
    assert steps == sorted(steps, reverse=True) and min(steps) > 0.0  # fast first


def test_the_largest_stay_and_centres_are_the_means_of_their_weights():
    w = torch.tensor([[0.1, -3.0, 0.0], [2.0, -0.2, 1.9]])
    alive = pruning.largest(w, 0.5)
    assert alive.tolist() == [[False, True, False], [True, False, True]]
    centre = torch.tensor([0.0, -1.0, 1.0, 50.0])
    index = pruning.assigned_(centre, w, alive)
    assert index.tolist() == [[0, 1, 0], [2, 0, 2]]
    torch.testing.assert_close(centre, torch.tensor([0.0, -3.0, 1.95, 50.0]))


def test_a_network_keeps_its_shares_and_few_values_and_what_it_has_learned():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 28, 28, generator=generator)
    y = torch.randint(2, (256,), generator=generator)
    x[y == 1, 10:14] += 0.5  # a bright stripe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 2))
    images = Images(x, y, Setting("t", "lenet-300-100", batch_size=32), seed=0)
    kept = {"1.weight": 0.2, "3.weight": 0.5}
    short = pruning.Pruning(kept, 4, prune_epochs=10, cluster_epochs=5, every=4)
    pruning.prune_(net, nn.functional.cross_entropy, images, short)
    index = pruning.quantise_(net, nn.functional.cross_entropy, images, short)
    for name, share in kept.items():
        w = net.get_parameter(name)
        assert (w != 0).sum() <= round(share * w.numel())
        assert (w[index[name] == 0] == 0).all() and len(w.unique()) <= 4
    assert ((net(x).argmax(1) == y).float().mean()) > 0.9
