import pytest
import torch
from scipy.cluster.vq import kmeans2

from swsmix import GaussianMixture
from swsmix.codec import encode
from swsmix.compression.codebooks import (
    _encoding_mixture,
    cluster,
    mixture_of_values,
    packed_bytes,
    quantize_state,
    snapped,
)


def state(shape=(80, 60), seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = torch.distributions.StudentT(4.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        w = 0.05 * t.sample(shape)
    return {"w": w, "b": torch.randn(shape[0], generator=generator), "n": torch.tensor(3)}


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
@pytest.mark.parametrize("zero", [False, True])
def test_each_value_is_the_mean_of_its_weights(method, zero):
    net = state()
    found = quantize_state(net, 6, method=method, zero=zero)
    assert list(found) == ["w"]
    q = found["w"]
    for j in range(zero, 6):
        mine = net["w"][q.index == j]
        assert len(mine) and q.codebook[j].item() == pytest.approx(mine.mean().item(), abs=1e-6)
    assert not zero or q.codebook[0] == 0.0


def test_a_progress_bar_changes_nothing_and_stays_off_standard_output(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    net = state()
    plain = quantize_state(net, 4)
    assert capsys.readouterr().err == ""  # none unless asked for
    watched = quantize_state(net, 4, progress=True)
    assert torch.equal(watched["w"].values, plain["w"].values)
    net["w"] = plain["w"].values
    assert encode(net, progress=True) == encode(net)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "quantising" in shown.err and "coding" in shown.err


def test_kmeans_is_as_good_as_scipys_and_assigns_to_the_nearest():
    w = state()["w"]
    q = quantize_state({"w": w}, 8, method="kmeans")["w"]
    nearest = (w[..., None] - q.codebook).abs().argmin(-1)
    assert (nearest != q.index).float().mean() < 1e-3
    mse = (q.values - w).square().mean().item()
    best = min(
        float(((w.reshape(-1, 1).numpy() - c[labels]) ** 2).mean())
        for seed in range(5)
        for c, labels in [kmeans2(w.reshape(-1, 1).numpy(), 8, minit="++", rng=seed)]
    )
    assert mse < 1.05 * best


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
@pytest.mark.parametrize(("modes", "k"), [(1, 2), (2, 3), (3, 7), (5, 6)])
def test_no_value_is_lost_where_weights_come_in_heaps(method, modes, k):
    generator = torch.Generator().manual_seed(0)
    heaps = torch.randn(modes, 2000, generator=generator) * 0.02
    w = (heaps + torch.arange(modes)[:, None]).reshape(-1, 20)
    q = quantize_state({"w": w}, k, method=method)["w"]
    x = w.double().reshape(-1, 1).numpy()
    best = min(
        float(((x - c[labels]) ** 2).mean())
        for seed in range(5)
        for c, labels in [kmeans2(x, k, minit="++", rng=seed)]
    )
    assert len(q.values.unique()) == len(q.codebook) == k
    assert (q.values - w).double().square().mean() < 1.1**2 * best


def test_the_mixture_that_encodes_is_where_em_stands_still():
    w = state()["w"].view(-1)
    centre = torch.linspace(-0.1, 0.1, 3)
    nearest = GaussianMixture(torch.ones(3) / 3, centre, torch.ones(3))
    mixture = _encoding_mixture(w, nearest, 1.0, False)
    gamma = mixture.responsibilities(w)
    means = (gamma * w[:, None]).sum(0) / gamma.sum(0)
    torch.testing.assert_close(mixture.mean, means, rtol=0.0, atol=0.01 * mixture.std[0].item())
    assert (mixture.mean - centre).abs().max() > 0.5 * mixture.std[0]
    pinned = _encoding_mixture(w, nearest, 1.0, True)
    assert pinned.mean[0] == centre[0] and (pinned.mean[1:] != centre[1:]).all()


@pytest.mark.parametrize("values", [[0.0, 0.5], [-2.0, -1.5, 7.0], [4.0]])
def test_components_of_few_values_are_narrow_beside_the_gap_between_them(values):
    values = torch.tensor(values).double()
    gap = values.diff().min() if len(values) > 1 else values[0]
    std = mixture_of_values([values.repeat(3)], values).std
    torch.testing.assert_close(std, torch.full_like(std, 0.03 * gap))


def test_values_that_no_weight_takes_are_not_in_the_codebook():
    net = state()
    for zero in (False, True):
        q = quantize_state(net, 16, strength=8.0, zero=zero)["w"]
        used = torch.bincount(q.index.reshape(-1), minlength=len(q.codebook)) > 0
        assert len(q.codebook) < 16 and used[zero:].all()
        assert not zero or q.codebook[0] == 0.0


def test_both_kinds_of_codebook_see_weights_of_few_values_and_of_any_magnitude_alike():
    few = torch.tensor([-1.0, 0.0, 2.0])[torch.randint(3, (20, 20))]
    assert torch.equal(cluster([few.view(-1)], 4)[0].mean, torch.tensor([-1.0, 0.0, 2.0]).double())
    assert quantize_state({"w": few}, 4)["w"].codebook.tolist() == [-1.0, 0.0, 2.0]
    w = state()["w"]
    one, other = (cluster([(w * unit).view(-1)], 3)[0] for unit in (1.0, 2.0**60))
    torch.testing.assert_close(other.mean.float() / 2.0**60, one.mean, rtol=1e-2, atol=1e-3)


def test_the_one_giant_among_very_many_weights_has_a_value():
    w = 0.1 * torch.randn(400, 1000, generator=torch.Generator().manual_seed(0))
    w[17, 5] = 30.0
    for method in ("mixture", "kmeans"):
        q = quantize_state({"w": w}, 4, method=method)["w"]
        assert q.values[17, 5] == pytest.approx(30.0, rel=1e-6)


def test_the_mixture_takes_fewer_bytes_than_kmeans_at_about_its_error():
    net = state((200, 150))
    a, b = (quantize_state(net, 16, method=m)["w"] for m in ("mixture", "kmeans"))
    assert len(encode({"w": a.values})) < len(encode({"w": b.values}))
    assert (a.values - net["w"]).square().mean() < 1.1 * (b.values - net["w"]).square().mean()


def test_what_is_quantised_already_stays_as_it_is():
    w = torch.tensor([-1.0, 0.0, 2.0])[torch.randint(3, (20, 20))]
    assert torch.equal(quantize_state({"w": w}, 16)["w"].values, w)


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
@pytest.mark.parametrize(("exponent", "dtype"), [(-100, torch.float32), (1000, torch.float64)])
def test_tiny_and_huge_weights_are_quantised_as_others_are(method, exponent, dtype):
    w = state()["w"].to(dtype)
    one = quantize_state({"w": w}, 6, method=method)["w"]
    other = quantize_state({"w": w * 2.0**exponent}, 6, method=method)["w"]
    assert (one.index == other.index).double().mean() > 0.99
    assert torch.allclose(other.codebook * 2.0**-exponent, one.codebook, rtol=1e-2)


def test_packed_palettes_are_counted_in_whole_bytes():
    net = {"w": torch.randn(10, 33), "b": torch.zeros(7)}
    found = quantize_state(net, 5)
    assert packed_bytes(net, found) == -(-330 * 3 // 8) + 5 * 4 + 7 * 4
    assert snapped(net, found)["b"] is net["b"]


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="w holds nan or inf"):
        quantize_state({"w": torch.full((9, 9), torch.nan)}, 4)
    with pytest.raises(ValueError, match="at least 1"):
        quantize_state({}, 0)
    with pytest.raises(ValueError, match="strength must be positive; got 0"):
        quantize_state({}, 4, strength=0.0)
