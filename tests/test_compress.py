import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import QUICK, run

from swsmix import load_run, nets
from swsmix.checkpoint import read_state, write_state
from swsmix.codec import load_compressed


def test_a_run_is_compressed_to_the_size_that_is_printed_and_comes_back_snapped(tmp_path):
    folder = tmp_path / "run"
    run(*QUICK, "--data", "shift", "-q", "--out", folder)
    printed = run("compress", folder)
    small = tmp_path / "run.sws"
    size = int(re.search(r"run\.sws\s*│\s*([\d,]+)", printed)[1].replace(",", ""))
    assert small.stat().st_size == size
    for words in ("float32", "float16", "gzip", "k-means", "packed"):
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


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    class Own:
        pass

    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    torch.save({"w": torch.ones(2), "lr": 0.1}, tmp_path / "more.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in (
        ("module.pt", "cannot read"),
        ("more.pt", "more than tensors"),
        ("text.safetensors", "cannot read"),
        ("none.pt", "there is no file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_state(tmp_path / name)
    run("decompress", tmp_path / "more.pt", fails="not a swsmix file")
    with pytest.raises(ValueError, match="must end in"):
        write_state(tmp_path / "x.txt", {})
