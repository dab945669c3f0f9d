"""quantize_ on networks of kinds that nobody prepared for it: compensated, or plain and named."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

from swsmix import codec
from swsmix.compression import quantize_
from swsmix.compression.hessians import evaluating


class Recurrent(nn.Module):
    """Token numbers through an embedding and a recurrent layer."""

    def __init__(self, kind):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.layer = kind(16, 12, num_layers=2, batch_first=True)
        self.last = nn.Linear(12, 7)

    def forward(self, tokens):
        return self.last(self.layer(self.table(tokens))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_products_inside_recurrent_layers_are_compensated(kind):
    net = Recurrent(kind)
    report = quantize_(net, torch.randint(50, (400, 6)), bits=3.0)
    assert len(report.layers) == 6 and not any(done.note for done in report.layers)
    assert sum(done.way == "compensated" for done in report.layers) >= 4
    assert report.error < 0.9 * report.plain_error


def test_fused_layers_are_back_afterwards():
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    with evaluating(nn.LSTM(3, 3)):
        assert not torch.backends.mkldnn.enabled and not torch.backends.cudnn.enabled
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == before
    with evaluating(nn.Linear(3, 3)):  # convolutions stay fast where nothing is recurrent
        assert torch.backends.mkldnn.enabled == before[0]


class Gpt(nn.Module):
    """A block of a language model with a tied table, positions and dropout."""

    def __init__(self):
        super().__init__()
        self.table, self.positions = nn.Embedding(40, 16), nn.Parameter(0.1 * torch.randn(8, 16))
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm, self.drop = nn.LayerNorm(16), nn.Dropout(0.5)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens) + self.positions[: tokens.shape[1]]
        q, k, v = (t.unflatten(2, (2, 8)) for t in self.qkv(self.norm(x)).chunk(3, -1))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(x + self.drop(self.out(mixed)))


class Inverted(nn.Module):
    """A depthwise convolution between two of one pixel, with batch norms and a shortcut."""

    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 16, 3, 1, 1, 1, 16)
        self.narrow, self.norm = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        return x + self.narrow(F.relu6(self.norm(self.deep(self.wide(x)))))


class Experts(nn.Module):
    """A stack of matrices of which a gate mixes the products."""

    def __init__(self):
        super().__init__()
        self.gate, self.stack = nn.Linear(16, 4), nn.Parameter(0.2 * torch.randn(4, 16, 16))

    def forward(self, x):
        return torch.einsum("be,eij,bj->bi", self.gate(x).softmax(-1), self.stack, x)


def chain(*modules):
    return nn.Sequential(*modules)


CASES = {
    "gpt": (Gpt, lambda: torch.randint(40, (200, 8)), {"table.weight", "positions"}),
    "depthwise": (Inverted, lambda: torch.randn(100, 8, 6, 6), set()),
    "upsampling": (
        lambda: chain(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, 2)),
        lambda: torch.randn(60, 3, 9, 9),
        {"2.weight"},
    ),
    "experts": (Experts, lambda: torch.randn(400, 16), {"stack"}),
    "bag": (
        lambda: chain(nn.EmbeddingBag(60, 16), nn.Linear(16, 6)),
        lambda: torch.randint(60, (300, 5)),
        set(),
    ),
    "weight norm": (
        lambda: chain(parametrizations.weight_norm(nn.Linear(20, 30)), nn.Linear(30, 5)),
        lambda: torch.randn(400, 20),
        {"0.parametrizations.weight.original1"},
    ),
    "dead inputs": (
        lambda: chain(nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 5)),
        lambda: torch.cat([torch.randn(400, 12), torch.zeros(400, 12)], 1),
        set(),
    ),
    "zero inputs": (
        lambda: chain(nn.Linear(24, 30, bias=False), nn.Linear(30, 5)),
        lambda: torch.zeros(400, 24),
        set(),
    ),
}


@pytest.mark.filterwarnings("ignore:the network answers the same:UserWarning")  # to zero inputs
@pytest.mark.parametrize("case", CASES)
def test_a_network_of_any_kind_is_no_worse_than_plain_and_names_what_it_does_not_know(case):
    make, inputs, plain = CASES[case]
    net = make().train()
    given = copy.deepcopy(net.state_dict())
    x = inputs()
    report = quantize_(net, x, bits=3.0)
    assert {done.name for done in report.layers if done.note} == plain
    assert all(done.way == "plain" for done in report.layers if done.note)
    assert report.bits <= 3.0 and report.error <= report.plain_error * (1.0 + 1e-6)
    assert all(module.training for module in net.modules())
    state = net.state_dict()
    assert all(torch.equal(t, given[n]) for n, t in state.items() if "running" in n)
    back = codec.decode(codec.encode(state))
    assert all(torch.equal(t, back[n]) for n, t in state.items())


def test_the_transposed_convolution_is_called_so():
    net = chain(nn.ConvTranspose2d(8, 3, 3), nn.Conv2d(3, 9, 3))
    notes = [d.note for d in quantize_(net, torch.randn(60, 8, 6, 6), bits=3.0).layers]
    assert notes == ["used by transposed convolution", ""]


def test_part_of_a_table_or_of_a_convolution_is_plain_and_named():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.taps = (nn.Parameter(torch.randn(2 * n, 8, 3)) for n in (10, 4))

        def forward(self, tokens):
            x = F.embedding(tokens, self.table.flatten(1)[:20])
            return F.conv1d(x.unflatten(-1, (8, 3))[:, 0], self.taps[:4])

    layers = quantize_(Parts(), torch.randint(20, (200, 2)), bits=3.0).layers
    assert [d.note for d in layers] == [
        "used by an unusual embedding",
        "used by an unusual convolution",
    ]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_network_is_one_like_any_other():
    eager, x = chain(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 10)), torch.randn(500, 24)
    traced = torch.jit.trace(copy.deepcopy(eager), x[:2])
    quantize_(eager, x, bits=2.0)
    quantize_(traced, x, bits=2.0)
    wanted = dict(eager.named_parameters())
    assert all(torch.equal(p, wanted[n]) for n, p in traced.named_parameters())


def test_labels_in_the_batches_give_an_error_that_says_how_to_leave_them_out():
    net, x = chain(nn.Linear(24, 10)), torch.randn(64, 24)
    given = net[0].weight.detach().clone()
    with pytest.raises(TypeError, match="leave labels out") as error:
        quantize_(net, [(x, torch.zeros(64))], bits=2.0)
    assert "a batch that is a tuple" in error.value.__notes__[0]
    assert torch.equal(net[0].weight, given)
    with pytest.raises(TypeError, match="a batch that is dict"):
        quantize_(net, [{"pixels": x}], bits=2.0)
