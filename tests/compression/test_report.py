"""What snapping does to a network, tensor by tensor."""

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, snap_
from swsmix.compression.report import snapping_report
from swsmix.compression.snap import bits_per_weight

# Networks that no prior has trained are snapped here.
pytestmark = pytest.mark.filterwarnings("ignore:snapping took")


def test_the_report_says_what_snapping_does():
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5))
    prior = MixturePrior(net, 4, zero=True)
    old = {n: p.detach().clone() for n, p in net.named_parameters()}
    report = snapping_report(net, prior, measure=lambda m: m[0].weight.double().sum().item())
    assert torch.equal(net[0].weight, old["0.weight"])
    index = snap_(prior)
    for row in report.tensors:
        new = net.get_parameter(row.name).detach()
        assert row.distinct == len(new.unique()) and row.numel == new.numel()
        assert row.nonzero == pytest.approx((new != 0).double().mean().item())
        assert row.mse == pytest.approx((new - old[row.name]).double().square().mean().item())
        assert row.largest == pytest.approx((new - old[row.name]).abs().max().item())
        assert row.bits == pytest.approx(bits_per_weight(index[row.name]))
    assert report.after == pytest.approx(net[0].weight.double().sum().item())
    assert "0.weight" in str(report) and "exact" in str(report)
