import pytest
import torch
from scipy.cluster.vq import kmeans2

from swsmix.codec import encode
from swsmix.compression.codebooks import packed_bytes, quantize_state, snapped


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
    plain, watched = quantize_state(net, 4), quantize_state(net, 4, progress=True)
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
