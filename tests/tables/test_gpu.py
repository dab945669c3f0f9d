"""On a GPU everything is what it is on the processor: the same laws, the same numbers."""

import copy
import io
import subprocess
import sys
import warnings

import cases
import pytest
import torch
from tabulated import MIXTURES, excess, twin, weights_of
from torch import nn

from swsmix import (
    HyperPrior,
    MixturePrior,
    Schedule,
    fit,
    initial_mixture,
    tables,
)
from swsmix.bayes import Joint, fit_guide
from swsmix.compression import load_compressed, save_compressed
from swsmix.compression.recipe import Recipe, compress_
from swsmix.tables import backends
from swsmix.tables.cutting import cut
from swsmix.tables.exact import ExactMixture

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["triton", "torch"])
def loops(request, monkeypatch):
    """What passes over the weights: Triton's loops, or torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(backends, "triton_kernels", lambda device: None)
    else:
        pytest.importorskip("triton")


every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())


def on_gpu(mixture):
    return tuple(each.cuda() for each in mixture)


@every_mixture
def test_the_gradient_is_within_the_reported_bound_of_the_twin(mixture, loops):
    w = weights_of(mixture)
    _, exact, curvature, _ = twin(w, *mixture)
    table = tables.build(*on_gpu(mixture))
    gradient = table.gradient(w.cuda())
    assert gradient.is_cuda
    assert excess(gradient.cpu(), exact, curvature) <= table.error.gradient <= 1e-5


@every_mixture
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_and_moments_are_the_processors(mixture, dtype):
    w = weights_of(mixture)[1400:].to(dtype)
    here, there = tables.build(*mixture), tables.build(*on_gpu(mixture))
    torch.testing.assert_close(there.value(w.cuda()).cpu(), here.value(w), rtol=1e-6, atol=1e-6)
    for one, other in zip(here.moments(w), there.moments(w.cuda()), strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-6, atol=1e-9 * len(w))


@every_mixture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_in_other_precisions_are_the_processors(mixture, dtype):
    w = weights_of(mixture)[1400:].to(dtype)
    here, there = tables.build(*mixture).gradient(w), tables.build(*on_gpu(mixture))
    rtol = 1e-9 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(there.gradient(w.cuda()).cpu(), here, rtol=rtol, atol=1e-5)


@every_mixture
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_proximal_step_is_the_processors(mixture, adaptive, loops):
    at = weights_of(mixture)[1400:]
    second = torch.rand(at.shape, generator=torch.Generator().manual_seed(1))
    here, there = at + 1e-3, (at + 1e-3).cuda()
    for w, table in ((here, tables.build(*mixture)), (there, tables.build(*on_gpu(mixture)))):
        step = tables.Adaptive(second.to(w.device), 1e-3, 1e-8) if adaptive else 1e-3
        table.proximal_(w, at.to(w.device), step, 1e-2)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-7)


def test_no_memory_grows_with_the_number_of_weights(loops):
    mixture = on_gpu(MIXTURES["sixty-four"])
    w = 0.3 * torch.randn(80_000_000, device="cuda")
    out, peaks = torch.empty_like(w), []
    for n in (20_000_000, 80_000_000):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        tables.build(*mixture).full(w[:n], out=out[:n])
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert abs(peaks[1] - peaks[0]) < 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [100, 200_000])
def test_a_step_between_two_em_steps_does_not_wait_for_the_gpu(n, dtype):
    pytest.importorskip("triton")
    w = weights_of(MIXTURES["hard"], n).to("cuda", dtype)  # some where no line is certified
    grad, second = torch.zeros_like(w), torch.ones_like(w)
    table = tables.build(*on_gpu(MIXTURES["hard"]))

    def step():
        table.add_gradient_(grad, w, 0.5)
        table.proximal_(w, w, tables.Adaptive(second, 1e-3, 1e-8), 1e-2)

    step()  # cuts the cells and compiles
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["one", "typical", "quantised"])
def test_a_mixtures_tables_are_made_with_one_wait_for_the_gpu(name):
    pytest.importorskip("triton")
    device = torch.device("cuda", torch.cuda.current_device())
    assert backends.triton_cutting(device) is not None

    def build():
        return tables.build(*on_gpu(MIXTURES[name])).passes

    _ = build().cells.both_pieces  # compiles
    passes = build()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            _ = passes.cells.both_pieces
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in waits if "synchroniz" in str(each.message)]) == 1


@every_mixture
def test_cells_cut_on_the_gpu_are_the_processors(mixture):
    pytest.importorskip("triton")
    here = cut(ExactMixture(*mixture), 1e-5, torch.device("cpu"))
    there = tables.build(*on_gpu(mixture)).passes.cells
    assert there.intervals.centre.is_cuda
    # A bound at its limit may be over it by a rounding error.
    assert abs(len(there.certified) - len(here.certified)) <= 0.01 * len(here.certified)
    for bound, expected in zip(there.error, here.error, strict=True):
        assert bound == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_an_attached_step_between_two_em_steps_does_not_wait_for_the_gpu(update):
    pytest.importorskip("triton")
    net = torch.nn.Linear(300, 200).to("cuda")
    prior = MixturePrior(net, 17)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    prior.attach(optimizer, num_data=1000, schedule=Schedule(em_every=100), update=update)
    x = torch.ones(10, 300, device="cuda")

    def step():
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    for _ in range(3):  # cuts the cells and compiles
        step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def problem(device):
    net = cases.network().to(device)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)).to(device)
    return net, x, (x[:, 0] > 0).long()


def trained(device, epochs=4, mode="em", **options):
    net, x, y = problem(device)
    prior = MixturePrior(net, 4, mode=mode)
    extra = prior.parameters() if mode == "gradient" else []
    optimizer = torch.optim.Adam([*net.parameters(), *extra], lr=1e-2)
    fit(
        net, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer, epochs=epochs, prior=prior,
        schedule=Schedule(tau=0.1), progress=False, **options,
    )  # fmt: skip
    return net, prior


@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_training_is_that_of_the_processor(mode):
    (net, prior), (there, prior_there) = trained("cpu", mode=mode), trained("cuda", mode=mode)
    for p, q in zip(net.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=1e-3, atol=1e-4)
    mixture, twin = prior.mixtures["all"], prior_there.mixtures["all"]
    torch.testing.assert_close(mixture.mean, twin.mean.cpu(), rtol=1e-2, atol=1e-3)


def test_full_batch_training_works():
    net, x, y = problem("cuda")
    prior = MixturePrior(net, 4)
    loss = nn.CrossEntropyLoss()
    start = float(loss(net(x), y).detach())
    fit(net, loss, (x, y), optimizer="l-bfgs", epochs=3, prior=prior, progress=False)
    assert float(loss(net(x), y).detach()) < start


def test_a_run_is_continued_where_it_was_stopped(tmp_path):
    whole, _ = trained("cuda", epochs=4)
    trained("cuda", epochs=2, run=tmp_path / "run")
    resumed, _ = trained("cuda", epochs=4, run=tmp_path / "run", resume=True)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_with_a_gradient_scaler_trains(dtype):
    net, x, y = problem("cuda")
    prior = MixturePrior(net, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
    prior.attach(optimizer, num_data=len(x), schedule=Schedule(tau=0.1, em_every=5))
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    loss = nn.CrossEntropyLoss()
    start = float(loss(net(x), y).detach())
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=dtype):
            scaler.scale(loss(net(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert float(loss(net(x), y).detach()) < 0.9 * start
    assert torch.isfinite(prior.mixtures["all"].std).all()


def test_autocast_changes_nothing(loops):
    mixture, w = on_gpu(MIXTURES["typical"]), weights_of(MIXTURES["typical"]).cuda()
    plain = tables.build(*mixture).full(w)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cast = tables.build(*mixture).full(w)
    torch.testing.assert_close(cast.gradient, plain.gradient, rtol=0, atol=0)
    torch.testing.assert_close(cast.value, plain.value)


def test_a_prior_follows_its_network():
    net = cases.network()
    prior = MixturePrior(net, 4)
    net.cuda()
    with pytest.raises(ValueError, match=r"call prior\.to\('cuda:0'\)"):
        prior.em_step_()
    prior.to("cuda").em_step_()
    assert prior.mixtures["all"].mean.is_cuda


@pytest.mark.parametrize("method", ["quantiles", "kmeans", "spread"])
def test_initialisations_are_the_processors(method):
    w = cases.weights(5000).float()
    here = initial_mixture(w, 5, method=method)
    there = initial_mixture(w.cuda(), 5, method=method)
    torch.testing.assert_close(there.mean.cpu(), here.mean, rtol=1e-4, atol=1e-5)


def test_a_network_is_compressed_saved_and_loaded(tmp_path):
    net, x, y = problem("cuda")
    recipe = Recipe(num_components=4, sparsify_epochs=2, quantise_epochs=2, finetune_epochs=1)
    found = compress_(net, nn.CrossEntropyLoss(), (x, y), recipe=recipe, progress=False)
    save_compressed(tmp_path / "net.sws", net, found.prior)
    loaded = load_compressed(tmp_path / "net.sws")
    for name, p in net.state_dict().items():
        assert torch.equal(loaded[name], p.cpu())


def test_a_variational_posterior_is_fitted():
    net, x, y = problem("cuda")
    prior = MixturePrior(net, 3, hyper=HyperPrior(mean_count=0.1))
    joint = Joint(net, prior, x, y, likelihood="categorical")
    with pytest.warns(UserWarning, match="starts from noise"):
        posterior = fit_guide(joint, epochs=3, draws=20, mixture_every=1, progress=False)
    assert len(posterior.about["elbo"]) == 3
    assert torch.isfinite(posterior.z).all()


def test_the_command_line_trains_on_it(tmp_path):
    command = [
        sys.executable,
        "-m",
        "swsmix.cli",
        "train",
        "--device",
        "cuda",
        "--epochs",
        "2",
        "--quiet",
    ]
    subprocess.run([*command, "--out", tmp_path / "run"], check=True)
    assert (tmp_path / "run" / "final" / "network.safetensors").is_file()


def test_a_prior_is_saved_and_loaded_across_devices():
    net, prior = trained("cuda", epochs=1)
    buffer = io.BytesIO()
    torch.save(prior.state_dict(), buffer)
    buffer.seek(0)
    here = MixturePrior(copy.deepcopy(net).cpu(), 4)
    here.load_state_dict(torch.load(buffer, map_location="cpu", weights_only=True))
    torch.testing.assert_close(here.mixtures["all"].mean, prior.mixtures["all"].mean.cpu())
