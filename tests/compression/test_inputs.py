"""quantize_: anyone's network with inputs and without labels."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from swsmix import codec
from swsmix.compression import calibration, layerwise, quantize_


def correlated(rows, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, n // 3, generator=g) @ torch.randn(n // 3, n, generator=g) + 0.3


def small():
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 10))


def relative_error(net, dense, x):
    with torch.no_grad():
        return float((net(x) - dense(x)).square().sum() / dense(x).square().sum())


def test_bits_are_met_and_are_what_the_weights_take():
    net = small()
    report = quantize_(net, correlated(1000, 24), bits=2.0)
    assert 1.7 <= report.bits <= 2.0
    total = 0.0
    for w in (net[0].weight, net[2].weight):
        share = w.unique(return_counts=True)[1] / w.numel()
        total += float(-(share * share.log2()).sum()) * w.numel()
    assert report.bits == pytest.approx(total / (24 * 40 + 400), rel=1e-5)
    for name, w in (("0.weight", net[0].weight), ("2.weight", net[2].weight)):
        assert set(w.unique().tolist()) <= set(report.codebooks[name].values.tolist())


def test_a_size_is_met_by_the_file():
    net = small()
    dense = len(codec.encode(net.state_dict()))
    quantize_(net, correlated(1000, 24), size_bytes=dense // 4)
    assert dense // 5 < len(codec.encode(net.state_dict())) <= dense // 4


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_size_near_that_of_the_exact_network_is_met(share):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
    most = int(share * len(codec.encode(net.state_dict())))
    quantize_(net, torch.randn(800, 12), size_bytes=most)
    assert len(codec.encode(net.state_dict())) <= most


def test_a_loss_is_met_on_inputs_that_it_did_not_see():
    net = small()
    dense = copy.deepcopy(net)
    x = correlated(4000, 24)
    report = quantize_(net, x[:3000], loss=0.01)
    assert 0.008 < report.error <= 0.01
    assert relative_error(net, dense, x[3000:]) < 0.015
    assert report.error < 0.5 * report.plain_error
    assert report.compensated
    assert {done.way for done in report.layers} == {"compensated"}


def test_by_default_the_outputs_lose_half_a_percent():
    assert 0.0043 < quantize_(small(), correlated(1000, 24)).error <= 0.005


def test_the_report_prints_a_line_for_each_weight_and_one_for_the_whole():
    text = str(quantize_(small(), correlated(1000, 24), bits=2.0))
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["0.weight", "2.weight"]
    assert "bits per weight" in text.splitlines()[3]
    assert len(text.splitlines()) == 4


def test_a_tensor_tuples_and_mappings_are_the_same_inputs():
    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, scale=1.0):
            return {"hidden": scale, "logits": self.net(x * scale)}

    x, nets = correlated(1024, 24), [Named(small()) for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    batches = x.split(256)
    for net, inputs in zip(
        nets, (x, [(b, 1.0) for b in batches], ({"x": b} for b in batches)), strict=True
    ):
        quantize_(net, inputs, bits=2.0)
    for net in nets[1:]:
        assert torch.equal(net.net[0].weight, nets[0].net[0].weight)


def test_the_order_of_batches_changes_nothing_but_rounding():
    nets = [small(), small()]
    nets[1].load_state_dict(nets[0].state_dict())
    batches = [b.double() for b in correlated(1024, 24).split(128)]
    reports = [
        quantize_(net.double(), order, bits=2.0)
        for net, order in zip(nets, (batches, batches[::-1]), strict=True)
    ]
    assert reports[0].error == pytest.approx(reports[1].error, rel=1e-6)
    torch.testing.assert_close(nets[0][0].weight, nets[1][0].weight)


def test_modes_gradients_and_frozen_parameters_stay_as_they_were():
    net = nn.Sequential(*small(), nn.Dropout(0.5), nn.BatchNorm1d(10))
    net[0].weight.requires_grad_(False)
    net[3].eval()
    before = copy.deepcopy(net[4].state_dict())
    quantize_(net, correlated(1000, 24), bits=2.0)
    assert [m.training for m in net] == [True, True, True, False, True]
    assert [p.requires_grad for p in net.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(t, before[n]) for n, t in net[4].state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_keep_them(dtype):
    net = small().to(dtype)
    report = quantize_(net, correlated(1000, 24).to(dtype), bits=2.0)
    assert net[0].weight.dtype == dtype
    assert len(net[0].weight.unique()) <= len(report.codebooks["0.weight"].values)
    assert report.compensated


def test_the_bias_makes_good_what_changes_on_average():
    net = nn.Sequential(nn.Linear(24, 10))
    dense = copy.deepcopy(net)
    x = correlated(1000, 24) + 5.0
    quantize_(net, [x, x[:0]][:1], bits=1.0)
    used = x[:750]  # the last quarter is held out
    with torch.no_grad():
        torch.testing.assert_close(net(used).mean(0), dense(used).mean(0), rtol=0, atol=1e-4)


def test_tied_weights_stay_tied_and_are_quantised_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x).relu())

    net = Tied()
    report = quantize_(net, correlated(1000, 24), bits=2.0)
    assert [done.name for done in report.layers] == ["a.weight"]
    assert report.layers[0].way == "compensated"
    assert net.a.weight is net.b.weight


def test_an_embedding_that_is_also_a_product_is_plain_and_says_so():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix = nn.Embedding(30, 16), nn.Linear(16, 16)

        def forward(self, tokens):
            return F.linear(self.mix(self.table(tokens)), self.table.weight)

    report = quantize_(Language(), torch.randint(30, (400, 5)), bits=2.0)
    assert [(d.name, d.way) for d in report.layers] == [
        ("table.weight", "plain"),
        ("mix.weight", "compensated"),
    ]
    assert report.layers[0].note == "an embedding and a product share it"
    assert "share it" in str(report)


def test_common_tokens_of_an_embedding_get_the_smaller_error():
    net = nn.Sequential(nn.Embedding(200, 16), nn.Flatten(), nn.Linear(16, 4))
    given = net[0].weight.detach().clone()
    tokens = torch.cat([torch.arange(20).repeat(100), torch.randint(200, (200,))])
    report = quantize_(net, tokens[torch.randperm(2200)], bits=1.5)
    assert report.layers[0].way == "by token frequency"
    error = (net[0].weight - given).square().mean(1)
    assert error[:20].mean() < 0.85 * error[20:].mean()


def test_attention_whose_fast_path_hides_its_weights_is_compensated():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    report = quantize_(net, torch.randn(300, 4, 16), bits=3.0)
    assert len(report.layers) == 8
    assert not any(done.note for done in report.layers)
    assert sum(done.way == "compensated" for done in report.layers) >= 6


def test_a_use_that_is_not_understood_is_plain_and_says_so():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.table = small(), nn.Parameter(torch.randn(10, 10))

        def forward(self, x):
            return self.net(x) @ torch.exp(self.table)

    report = quantize_(Scaled(), correlated(1000, 24), bits=2.0)
    assert [(d.way, d.note) for d in report.layers][2] == ("plain", "used by exp")
    assert "(used by exp)" in str(report)


def test_one_giant_weight_does_not_wreck_its_row():
    net = small()
    with torch.no_grad():
        net[0].weight[3, 7] = 100.0 * net[0].weight.std()
    dense, x = copy.deepcopy(net), correlated(2000, 24)
    report = quantize_(net, x[:1500], bits=2.0)
    got = net[0](x[1500:])[:, 3]
    wanted = dense[0](x[1500:])[:, 3]
    assert (got - wanted).square().mean() < 0.01 * wanted.square().mean()
    assert report.error <= report.plain_error


def test_a_layer_whose_compensation_fails_on_held_out_inputs_is_plain(monkeypatch):
    real = layerwise.compensated

    def spoiled(weight, pieces, book, damping):
        best = real(weight, pieces, book, damping)
        return best if len(weight) == 10 else best._replace(values=-best.values)

    monkeypatch.setattr(layerwise, "compensated", spoiled)
    first, second = quantize_(small(), correlated(1000, 24), bits=2.0).layers
    assert (first.way, second.way) == ("plain", "compensated")
    assert first.error == first.plain_error


def test_a_network_whose_plain_weights_do_better_gets_them(monkeypatch):
    real = layerwise.quantise_

    def spoiled(parameters, layer, pieces, lam, damping):
        done, best = real(parameters, layer, pieces, lam, damping)
        if pieces:
            parameters[layer.name].detach().mul_(-1.0)
        return done, best

    monkeypatch.setattr(calibration.layerwise, "quantise_", spoiled)
    net, dense, x = small(), None, correlated(1000, 24)
    dense = copy.deepcopy(net)
    report = quantize_(net, x, bits=3.0)
    assert not report.compensated
    assert report.error == pytest.approx(report.plain_error, rel=0.5)
    assert relative_error(net, dense, x) < 0.1


def test_few_inputs_with_weak_damping_are_warned_of_with_the_remedy():
    with pytest.warns(
        UserWarning, match=r"0\.weight saw 30 rows.*fan-in is 24.*give about 65 rows"
    ):
        quantize_(nn.Sequential(nn.Linear(24, 10)), correlated(40, 24), bits=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(nn.Sequential(nn.Linear(24, 10)), correlated(40, 24), bits=2.0, damping=0.3)


@pytest.mark.parametrize("scale", [0.0, 1e-7])
def test_inputs_that_are_all_alike_are_warned_of(scale):
    net = nn.Sequential(nn.Linear(24, 10))
    x = 1.0 + scale * correlated(800, 24)
    with pytest.warns(UserWarning, match="the same to all held-out inputs.*such as it was trained"):
        quantize_(net, x, bits=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(net, correlated(800, 24), bits=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 2.0, "loss": 0.1}, "at most one of bits, size_bytes and loss"),
        ({"bits": -1.0}, "bits must be positive"),
        ({"loss": math.nan}, "loss must be positive"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"inputs": []}, "got none: a generator may be used up"),
        ({"inputs": torch.full((100, 24), math.nan)}, "answers to the inputs hold nan"),
        ({"model": nn.ReLU()}, "nothing to quantise"),
        ({"model": nn.Linear(24, 2)}, "nothing to quantise"),
        ({"size_bytes": 10}, "size_bytes of at most 10; the least reached is"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_the_network(arguments, message):
    net = small()
    before = copy.deepcopy(net.state_dict())
    call = {"model": net, "inputs": correlated(400, 24)} | arguments
    with pytest.raises(ValueError, match=message):
        quantize_(call.pop("model"), call.pop("inputs"), **call)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_weights_that_are_not_finite_are_named():
    net = small()
    with torch.no_grad():
        net[2].weight[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"2\.weight holds nan or inf"):
        quantize_(net, correlated(400, 24))


def test_answers_without_floating_point_tensors_are_refused():
    net = nn.Sequential(small(), Largest())
    with pytest.raises(TypeError, match="pass output="):
        quantize_(net, correlated(400, 24))
    report = quantize_(net, correlated(400, 24), output=lambda y: y.double()[:, None])
    assert math.isnan(report.agreement)


class Largest(nn.Module):
    def forward(self, x):
        return x.argmax(-1)
