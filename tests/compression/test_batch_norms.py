"""Batch norms are folded where that changes no output, and nowhere else."""

import copy

import pytest
import torch
from torch import nn

from swsmix.compression.batch_norms import fold_batch_norms_
from swsmix.compression.transforms import same_outputs
from swsmix.problems import nets


def lived(net, *shape):
    """The network with statistics, scales and shifts that are not those of the start."""
    torch.manual_seed(1)
    for p in net.parameters():
        if p.ndim == 1:
            nn.init.uniform_(p, 0.3, 1.5)
    with torch.no_grad():
        net.train()
        for _ in range(3):
            net(torch.randn(16, *shape) + 0.3)
    return net.eval()


class Shared(nn.Module):
    """Each of four reasons not to fold, and one norm that can be."""

    def __init__(self):
        super().__init__()
        self.seen, self.seen_norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.twice, self.twice_norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.tied, self.tied_norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.other = nn.Linear(5, 5)
        self.other.weight = self.tied.weight
        self.free = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, track_running_stats=False))
        self.good = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, affine=False))

    def forward(self, x):
        y = self.seen(x)
        x = self.seen_norm(y) + y
        x = self.twice_norm(self.twice(x)) + self.twice(x)
        x = self.other(self.tied_norm(self.tied(x)))
        return self.good(self.free(x))


NETS = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Flatten(),
            nn.Linear(8 * 16, 7), nn.BatchNorm1d(7),
        ),
        (3, 8, 8), 3,
    ),
    "others": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6),
            nn.ConvTranspose1d(6, 4, 3, groups=2), nn.BatchNorm1d(4),
        ),
        (3, 9), 3,
    ),
    "resnet20": (nets.resnet20, (3, 32, 32), 19),
    "wrn": (lambda: nets.wrn(10, 1), (3, 32, 32), 3),  # what bn1 and bn follow goes elsewhere too
    "shared": (Shared, (5,), 1),
    "before": (lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), (5,), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_outputs_stay_and_what_can_be_folded_is(name):
    make, shape, number = NETS[name]
    net = lived(make(), *shape)
    before, x = copy.deepcopy(net), torch.randn(8, *shape)
    found = fold_batch_norms_(net)
    assert len(found) == number
    same_outputs(before, net, [x], tolerance=1e-4)
    for norm in found:
        assert isinstance(net.get_submodule(norm), nn.Identity)
    assert fold_batch_norms_(net) == {}


def test_the_layers_own_parameters_stay_the_same_objects():
    net = lived(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), 5)
    weight, bias = net[0].weight, net[0].bias
    fold_batch_norms_(net)
    assert net[0].weight is weight and net[0].bias is bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(dtype):
    net = lived(nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4)), 5).to(dtype)
    fold_batch_norms_(net)
    assert {p.dtype for p in net.parameters()} == {dtype}


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.layer(x)
        return self.norm(x) if x.sum() > 0 else x


def test_a_network_that_cannot_be_traced_is_refused_and_unchanged():
    net = lived(Branching(), 5)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"cannot be traced.*fold its parts"):
        fold_batch_norms_(net)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
