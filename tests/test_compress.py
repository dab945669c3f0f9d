import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import QUICK, run

from swsmix import checkpoints, load_run, nets
from swsmix.codec import load_compressed


def test_a_run_is_compressed_to_the_size_that_is_printed_and_comes_back_snapped(tmp_path):
    folder = tmp_path / "run"
    run(*QUICK, "--data", "shift", "-q", "--out", folder)
    printed = run("compress", folder)
    small = tmp_path / "run.sws"
    size = int(re.search(r"run\.sws\s*│\s*([\d,]+)", printed)[1].replace(",", ""))
    assert small.stat().st_size == size
    for words in ("float32", "float16", "gzip", "k-means", "packed", "bits/weight", "exact"):
        assert words in printed
    run("decompress", small, "--out", tmp_path / "back.pt")
    net = nets.shift_net()
    net.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))
    centres = torch.cat([m.mean for m in load_run(folder).mixtures.values()]).float()
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters() if p.ndim > 1])
    assert torch.isin(weights, centres).all()
    biases = {n: t for n, t in load_run(folder).network.items() if t.ndim < 2}
    assert all(torch.equal(net.state_dict()[n], t) for n, t in biases.items())


@pytest.mark.parametrize("kind", ["net.safetensors", "net.pt", "nested.pth"])
def test_a_foreign_checkpoint_is_compressed_and_comes_back(tmp_path, kind):
    state = {"a.weight": torch.randn(30, 20), "a.bias": torch.randn(30), "n": torch.tensor(5)}
    path = tmp_path / kind
    if kind.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind.startswith("nested") else state, path)
    run("compress", path, "--values", 4, "--bias-bits", 8, "-q")
    run("decompress", path.with_suffix(".sws"), "--out", tmp_path / "back.safetensors", "-q")
    back = load_file(tmp_path / "back.safetensors")
    assert sorted(back) == sorted(state) and back["n"] == 5
    assert len(back["a.weight"].unique()) == 4
    assert not torch.equal(back["a.bias"], state["a.bias"])
    assert torch.allclose(back["a.bias"], state["a.bias"], atol=0.05)
    run("compress", path, "--lossless", "-q")
    whole = load_compressed(path.with_suffix(".sws"))
    assert all(torch.equal(whole[n], t) for n, t in state.items())


def test_the_network_alone_is_compressed_of_what_a_trainer_keeps_beside_it(tmp_path):
    state = {"a.weight": torch.randn(30, 20)}
    average = {"a.weight": torch.randn(30, 20)}
    torch.save({"ema": average, "model": state, "lr": 0.1}, tmp_path / "all.pt")
    run("compress", tmp_path / "all.pt", "--lossless", "-q")
    whole = load_compressed(tmp_path / "all.sws")
    assert list(whole) == ["a.weight"] and torch.equal(whole["a.weight"], state["a.weight"])


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    torch.save({"lr": 0.1}, tmp_path / "none.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    run("compress", tmp_path / "module.pt", fails="it wants to run pickled code")
    run("compress", tmp_path / "none.pt", fails="holds no tensors")
    run("compress", tmp_path / "text.safetensors", fails="no checkpoint that swsmix can read")
    run("compress", tmp_path / "missing.pt", fails="missing.pt is not there")
    run("decompress", tmp_path / "none.pt", fails="not a swsmix file")
    assert not list(tmp_path.glob("*.sws"))
    with pytest.raises(ValueError, match="must end in"):
        checkpoints.write(tmp_path / "x.txt", {})


def test_a_compressed_file_is_never_written_over_itself(tmp_path):
    checkpoints.write(tmp_path / "net.safetensors", {"a": torch.randn(8, 8)})
    run("compress", tmp_path / "net.safetensors", "-q")
    before = (tmp_path / "net.sws").read_bytes()
    run("compress", tmp_path / "net.sws", fails="written over itself")
    assert (tmp_path / "net.sws").read_bytes() == before
