"""What a network's weights multiply, however it is written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from swsmix.compression import uses
from swsmix.compression.feeding import batches_of
from swsmix.compression.hessians import Moments, Watch, evaluating
from swsmix.compression.layerwise import pieces_of
from swsmix.compression.unfolding import convolution_rows
from swsmix.compression.uses import moments, scout, token_counts


class Function(nn.Module):
    """A network that is one function of its weights."""

    def __init__(self, function, **weights):
        super().__init__()
        self.function = function
        for name, w in weights.items():
            self.register_parameter(name, nn.Parameter(w))

    def forward(self, x):
        return self.function(self, x)


def seen(model, x):
    found = []
    with evaluating(model), Watch(dict(model.named_parameters()), found.append):
        model(x)
    return found


def matrices(model):
    return {n: p for n, p in model.named_parameters() if p.ndim >= 2}


def pieces(model, name, batches):
    layer = scout(model, matrices(model), batches)[name]
    assert not layer.note
    got = moments(model, layer, matrices(model), batches, 0)
    return pieces_of(layer, got, got)


def second_moment(x, centred=False):
    x = x.reshape(-1, x.shape[-1]).double()
    x = x - x.mean(0) if centred else x
    return x.T @ x / len(x)


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (9,)),
        (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2), (9, 8)),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), (5, 5)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (5, 5)),
        (nn.Conv3d(2, 3, 2, dilation=2), (4, 5, 6)),
    ],
)
def test_a_convolution_is_a_product_of_its_rows(conv, size):
    x = torch.randn(3, conv.in_channels, *size)
    (use,) = seen(conv, x)
    rows = use.inputs(1)
    assert use.number == rows.shape[1]
    weight = conv.weight.reshape(conv.groups, -1, conv.weight[0].numel())
    out = torch.cat(list(rows @ weight.mT), 1).T  # channels, then positions
    wanted = conv(x).movedim(1, 0).flatten(1)
    if conv.bias is not None:
        wanted = wanted - conv.bias[:, None]
    torch.testing.assert_close(out, wanted)


def test_thinned_rows_of_a_convolution_are_every_so_manieth():
    x = torch.randn(3, 4, 9, 8)
    _, rows = convolution_rows(x, (3, 3), (2, 1), (1, 0), (1, 2), 2)
    assert torch.equal(rows(3), rows(1)[:, ::3])


W = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
V = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("function", "weight", "transposed"),
    [
        (lambda m, x: F.linear(x, m.w), V, False),
        (lambda m, x: x @ m.w.T, W, False),
        (lambda m, x: x @ m.w, W, True),
        (lambda m, x: x @ m.w, V.T.contiguous(), True),
        (lambda m, x: torch.einsum("abi,oi->abo", x, m.w), V, False),
        (lambda m, x: (m.w @ x.reshape(-1, 8).T).T, V, False),
        (lambda m, x: F.linear(x, m.w.view(5, 8)), V[:, :, None], False),
    ],
)
def test_functional_products_are_seen_with_what_they_multiply(function, weight, transposed):
    x = torch.randn(6, 3, 8)
    model = Function(function, w=weight)
    (use,) = seen(model, x)
    assert (use.kind, use.transposed, use.number) == ("matrix", transposed, 18)
    assert use.rows == (0, 8 if weight is W else 5)
    (piece,) = pieces(model, "w", [x])
    torch.testing.assert_close(piece.hessian, second_moment(x), rtol=1e-5, atol=1e-5)


def test_inference_mode_hides_nothing():
    @torch.inference_mode()
    def run(m, x):
        return F.linear(x, m.w)

    (use,) = seen(Function(run, w=V), torch.randn(4, 3, 8))
    assert (use.kind, use.number) == ("matrix", 12)


def test_uses_of_which_nothing_is_known_are_named():
    layers = scout(
        model := Function(lambda m, x: x @ (m.w * 2.0) + m.other.sum(), w=W, other=W.clone()),
        matrices(model),
        [torch.randn(4, 8)],
    )
    assert layers["w"].note == "used by mul"
    assert layers["other"].note == "used by sum"


def test_a_weight_that_is_never_used_is_named():
    model = Function(lambda m, x: F.linear(x, m.w), w=V, other=W)
    layers = scout(model, matrices(model), [torch.randn(4, 8)])
    assert list(layers) == ["w", "other"]
    assert layers["other"].note == "no use of it was seen"


def test_query_key_and_value_of_attention_have_moments_of_their_own():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, q, k, v):
            return self.attention(q, k, v)[0]

    q, k, v = torch.randn(3, 5, 4, 8)
    model = Cross()
    found = pieces(model, "attention.in_proj_weight", [(q, k, v)])
    assert [(p.rows.start, p.rows.stop) for p in found] == [(0, 8), (8, 16), (16, 24)]
    for piece, x in zip(found, (q, k, v), strict=True):
        wanted = second_moment(x, centred=True)
        torch.testing.assert_close(piece.hessian, wanted, rtol=1e-4, atol=1e-4)
        assert piece.bias.start == piece.rows.start


def test_the_fast_path_of_a_transformer_is_off_while_it_is_watched_and_back_afterwards():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    kinds = {use.name: use.kind for use in seen(model, torch.randn(2, 3, 8))}
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear2.weight"):
        assert kinds[name] == "matrix"
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_moments_of_a_weight_with_several_uses_are_of_all_of_them():
    model = Function(lambda m, x: F.linear(F.linear(x, m.w).relu(), m.w), w=W)
    x = torch.randn(30, 8)
    (piece,) = pieces(model, "w", [x])
    both = torch.cat([x, F.linear(x, W).relu()])
    torch.testing.assert_close(piece.hessian, second_moment(both), rtol=1e-5, atol=1e-5)


def test_a_grouped_convolution_is_its_groups_apart():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    x = torch.randn(5, 4, 6, 6)
    found = pieces(conv, "weight", [x])
    assert [(p.rows.start, p.rows.stop) for p in found] == [(0, 3), (3, 6)]
    for number, piece in enumerate(found):
        half = nn.Conv2d(2, 3, 3)
        (alone,) = pieces(half, "weight", [x[:, 2 * number : 2 * number + 2]])
        torch.testing.assert_close(piece.hessian, alone.hessian)
        torch.testing.assert_close(piece.mean, alone.mean)
        assert piece.bias.start == 3 * number


def test_a_convolution_is_the_linear_layer_of_its_unfolded_inputs():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(5, 3, 6, 6)
    linear = nn.Linear(27, 4)
    unfolded = F.unfold(x, 3, padding=1).mT.reshape(-1, 27)
    (a,), (b,) = pieces(conv, "weight", [x]), pieces(linear, "weight", [unfolded])
    torch.testing.assert_close(a.hessian, b.hessian)


def test_the_order_of_batches_changes_no_moment():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = list(torch.randn(6, 10, 8))
    (a,), (b,) = (pieces(net, "2.weight", order) for order in (batches, batches[::-1]))
    torch.testing.assert_close(a.hessian, b.hessian)


def test_a_shared_bias_is_not_corrected():
    model = Function(
        lambda m, x: F.linear(F.linear(x, m.w, m.b), m.v, m.b), w=W, v=W.clone(), b=torch.randn(8)
    )
    x = torch.randn(9, 8)
    (piece,) = pieces(model, "w", [x])
    assert piece.bias is None
    torch.testing.assert_close(piece.hessian, second_moment(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.linear(F.linear(x, m.w, m.b), m.w, m.c),
        lambda m, x: F.linear(x, m.w, m.b) + m.b,
        lambda m, x: F.linear(x, m.w, m.d[8:]) * m.d.sum(),
    ],
)
def test_a_bias_that_is_not_the_only_one_or_used_otherwise_is_not_corrected(function):
    model = Function(function, w=W, b=torch.randn(8), c=torch.randn(8), d=torch.randn(16))
    (piece,) = pieces(model, "w", [torch.randn(9, 8)])
    assert piece.bias is None


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.linear(x, m.w) + F.linear(x, m.w[:4]).sum(),
        lambda m, x: F.linear(x, m.w[8:]) + x.repeat(1, 2) @ m.w,
    ],
)
def test_uses_that_overlap_in_part_or_in_both_directions_are_plain(function):
    model = Function(function, w=torch.cat([W, W]))
    layers = scout(model, matrices(model), [torch.randn(9, 8)])
    assert layers["w"].note == "its uses overlap in part"


def test_a_square_weight_that_lies_by_columns_is_not_read_by_rows():
    model = Function(lambda m, x: F.linear(x, m.w), w=W.T)
    assert scout(model, matrices(model), [torch.randn(9, 8)])["w"].note


def test_only_the_shape_of_a_weight_is_no_use_of_it():
    model = Function(lambda m, x: F.linear(x, m.w) + torch.zeros_like(m.w).sum(), w=W)
    assert not scout(model, matrices(model), [torch.randn(9, 8)])["w"].note


def test_weights_that_share_a_buffer_are_told_apart():
    flat = torch.randn(80)
    a, b = flat[:40].view(5, 8), flat[40:].view(8, 5)
    model = Function(lambda m, x: F.linear(F.linear(x, m.a), m.b), a=a, b=b)
    assert [use.name for use in seen(model, torch.randn(3, 8))] == ["a", "b"]


def test_weights_that_some_batches_do_not_use_are_seen_in_the_others():
    model = Function(lambda m, x: F.linear(x, m.w) if len(x) > 5 else x, w=W)
    batches = [torch.randn(3, 8), torch.randn(10, 8)]
    layer = scout(model, matrices(model), batches)["w"]
    (got,) = moments(model, layer, matrices(model), batches[1:], 1).values()
    assert got.count == 10


def test_the_network_runs_no_further_than_the_last_use():
    runs = []
    model = Function(lambda m, x: runs.append(F.linear(x, m.w)) or x, w=W)
    layer = scout(model, matrices(model), [torch.randn(3, 8)])["w"]
    assert len(runs) == 1
    moments(model, layer, matrices(model), [torch.randn(3, 8)], 0)
    assert len(runs) == 1


def test_many_rows_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(uses, "_MOST_ROWS", 100)  # 32 times the fan-in are more
    model, x = Function(lambda m, x: F.linear(x, m.w), w=W), torch.randn(600, 8)
    layer = scout(model, matrices(model), [x])["w"]
    (got,) = moments(model, layer, matrices(model), [x], 0).values()
    torch.testing.assert_close(got.hessian(0), second_moment(x[::3]), rtol=1e-5, atol=1e-5)


def test_the_rows_of_a_layer_are_the_fewest_of_its_parts():
    model = Function(lambda m, x: F.linear(x, m.w[:4]).sum() + F.linear(x[:2], m.w[4:]).sum(), w=W)
    assert scout(model, matrices(model), [torch.randn(9, 8)])["w"].rows == 2


def test_a_variance_much_smaller_than_the_mean_is_not_lost():
    sums, z = Moments(), torch.randn(500, 1)
    for part in z.split(100):
        sums.add_((1000.0 + 0.1 * part.expand(-1, 2))[None])
    wanted = (0.1 * z).double().var(correction=0).item()
    found = sums.hessian(0, sums.mean(0))
    assert found[0, 1].item() == pytest.approx(wanted, rel=0.02)
    assert sums.mean(0)[0].item() == pytest.approx(1000.0 + 0.1 * z.mean().item(), abs=1e-3)


def test_constant_inputs_make_all_directions_worth_as_little():
    sums = Moments()
    sums.add_(torch.full((1, 30, 3), 2.0))
    wanted = 4e-6 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(sums.hessian(0, sums.mean(0)), wanted)


@pytest.mark.parametrize(
    "table",
    [
        nn.Embedding(6, 4),
        *(nn.EmbeddingBag(6, 4, mode=mode) for mode in ("mean", "sum", "max")),
        Function(lambda net, x: net.weight[x], weight=torch.randn(6, 4)),
        Function(lambda net, x: net.weight.index_select(0, x[0]), weight=torch.randn(6, 4)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_tokens_are_counted(table, dtype):
    batch = torch.tensor([[0, 1, 1, 5, 1, 0], [0, 1, 1, 5, 1, 0]], dtype=dtype)
    layer = scout(table, matrices(table), [batch])["weight"]
    assert layer.tokens and not layer.note
    count = token_counts(table, layer, matrices(table), [batch, batch])
    assert (count / count.sum() * 12).tolist() == [4.0, 6.0, 0.0, 0.0, 0.0, 2.0]


@pytest.mark.parametrize("place", [torch.tensor([True, False] * 3), torch.tensor([0]), 1])
def test_other_parts_of_a_table_are_named(place):
    table = Function(lambda net, x: net.weight[:, place] + x, weight=torch.randn(6, 6))
    assert scout(table, matrices(table), [torch.ones(1)])["weight"].note


def test_modes_of_modules_come_back_even_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.Dropout())
    net[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not net.training
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == [True, True, False]


def test_a_quarter_of_each_batch_is_held_out():
    x = torch.arange(20).reshape(10, 2)
    used, held = batches_of([(x, {"y": x[:, 0], "flag": 3})], torch.device("cpu"))
    assert torch.equal(used[0][0], x[:8])
    assert torch.equal(held[0][1]["y"], x[8:, 0])
    assert held[0][1]["flag"] == 3


def test_every_fourth_of_small_batches_is_held_out():
    used, held = batches_of(list(torch.randn(9, 1, 2)), torch.device("cpu"))
    assert (len(used), len(held)) == (7, 2)
