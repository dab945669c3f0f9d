import re

import pytest
import torch
from commands import UNDRAWN, run
from safetensors.torch import load_file, save_file
from test_cli import QUICK

from swsmix import MixturePrior, fit, load_run
from swsmix.cli import compress as command
from swsmix.cli import decompress as back_command
from swsmix.cli.asked import parse_size
from swsmix.cli.sizes import bits_per_weight, relative_loss
from swsmix.codec import load_compressed
from swsmix.compression.duplicates import file_values
from swsmix.compression.report import TensorReport
from swsmix.inspection import checkpoints
from swsmix.problems import nets


def test_a_run_is_compressed_to_the_size_that_is_printed_and_comes_back_snapped(tmp_path):
    folder = tmp_path / "run"
    run(*QUICK, "--data", "shift", "-q", "--out", folder, program=UNDRAWN)
    printed = run("compress", folder)
    small = tmp_path / "run.sws"
    size = int(re.search(r"run\.sws\s*│\s*([\d,]+)", printed)[1].replace(",", ""))
    assert small.stat().st_size == size
    for words in ("float32", "float16", "gzip", "k-means", "packed", "bits/weight", "exact"):
        assert words in printed
    run("decompress", small, "--out", tmp_path / "back.pt")
    net = nets.shift_net()
    net.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))
    mixtures = load_run(folder).mixtures.values()
    values = torch.cat([file_values(m).codebook for m in mixtures]).float()
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters() if p.ndim > 1])
    assert torch.isin(weights, values).all()
    run("compress", folder, "--distortion", 0, "--out", tmp_path / "all.sws", "-q")
    every = load_compressed(tmp_path / "all.sws")
    weights = torch.cat([t.reshape(-1) for t in every.values() if t.ndim > 1])
    assert torch.isin(weights, torch.cat([m.mean for m in mixtures]).float()).all()
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
    again = run("compress", path, "--lossless", "--force")
    assert "little gained: these weights are not snapped" in again
    whole = load_compressed(path.with_suffix(".sws"))
    assert all(torch.equal(whole[n], t) for n, t in state.items())


def test_the_network_alone_is_compressed_of_what_a_trainer_keeps_beside_it(tmp_path):
    state = {"a.weight": torch.randn(30, 20)}
    average = {"a.weight": torch.randn(30, 20)}
    torch.save({"ema": average, "model": state, "lr": 0.1}, tmp_path / "all.pt")
    run("compress", tmp_path / "all.pt", "--lossless", "-q")
    whole = load_compressed(tmp_path / "all.sws")
    assert list(whole) == ["a.weight"] and torch.equal(whole["a.weight"], state["a.weight"])
    for command_line in (("compress", "--lossless", "--force"), ("inspect", "--no-figures")):
        printed = run(command_line[0], tmp_path / "all.pt", *command_line[1:])
        assert "left out: ema: a second set of the tensors in 'model'" in printed


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    torch.save({"lr": 0.1}, tmp_path / "none.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    run("compress", tmp_path / "module.pt", fails="it holds pickled code")
    run("compress", tmp_path / "none.pt", fails="holds no tensors")
    run("compress", tmp_path / "text.safetensors", fails="no checkpoint that swsmix can read")
    run("compress", tmp_path / "missing.pt", fails="missing.pt is not there")
    run("decompress", tmp_path / "none.pt", fails="not a swsmix file")
    assert not list(tmp_path.glob("*.sws"))
    with pytest.raises(ValueError, match="must end in"):
        checkpoints.write(tmp_path / "x.txt", {})


def test_tied_tensors_of_a_run_stay_tied_and_count_once(tmp_path, capsys):
    net = torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Tanh(), torch.nn.Linear(9, 9))
    net[2].weight = net[0].weight
    prior = MixturePrior(net, 3)
    x = torch.randn(20, 9)
    fit(
        net, torch.nn.functional.mse_loss, (x, x), epochs=1, prior=prior, progress=False,
        optimizer=torch.optim.Adam(net.parameters()), run=tmp_path / "lr0.1",
    )  # fmt: skip
    command.compress(tmp_path / "lr0.1")
    back = load_compressed(tmp_path / "lr0.1.sws")  # the dot begins no suffix
    assert torch.equal(back["0.weight"], back["2.weight"])
    assert len(back["2.weight"].unique()) <= 3
    printed = capsys.readouterr().out
    assert int(re.search(r"float32\s*│\s*([\d,]+)", printed)[1]) == 4 * (81 + 9 + 9)


def test_a_file_never_comes_back_over_what_was_compressed_unless_asked_to(tmp_path):
    path, small = tmp_path / "net.safetensors", tmp_path / "net.sws"
    checkpoints.write(path, {"a": torch.randn(20, 20)})
    before = path.read_bytes()
    command.compress(path, quiet=True)
    run(
        "decompress",
        small,
        fails="net.safetensors is there already: replace it by --force, or name",
    )
    assert path.read_bytes() == before
    back_command.decompress(small, path, force=True, quiet=True)
    assert path.read_bytes() != before
    path.unlink()
    back_command.decompress(small, quiet=True)
    assert path.exists()


def test_what_cannot_be_written_or_held_is_said_by_name_before_anything_is_written(tmp_path):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"a": torch.randn(20, 20), "b": torch.tensor([torch.nan])}, good)
    torch.save({"a": torch.empty(20, 20, device="meta"), "b": torch.ones(3)}, bad)
    for arguments, message in (
        ({"source": good, "out": tmp_path / "no" / "x.sws"}, "the folder .*no is not there"),
        ({"source": good, "out": tmp_path}, "it is a folder"),
        ({"source": good, "bias_bits": 8}, "b holds nan or inf"),
        (
            {"source": bad},
            "cannot be used without .*a: on the meta device",
        ),
    ):
        with pytest.raises((OSError, ValueError, TypeError), match=message):
            command.compress(**arguments)
    with pytest.raises(OSError, match=r"the folder .*no is not there"):
        back_command.decompress(good, tmp_path / "no" / "x.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pt", "good.pt"]


def test_the_table_says_how_biases_are_kept_and_which_matrices_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    state = {"a": torch.randn(20, 20), "few": torch.randn(4, 4), "b": torch.randn(9)}
    checkpoints.write(tmp_path / "net.safetensors", state)
    command.compress(tmp_path / "net.safetensors", tmp_path / "x.sws", bias_bits=8)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert "8 bits" in rows[-1] and "exact" in rows[0]
    assert "too few weights (below 64), kept as are: few" in printed
    command.compress(tmp_path / "net.safetensors", tmp_path / "y.sws", values=16)
    assert "too few weights for 16 values: few" in capsys.readouterr().out
    state = {"a": torch.zeros(0, 4), "b": torch.randn(9)}
    checkpoints.write(tmp_path / "empty.safetensors", state)
    command.compress(tmp_path / "empty.safetensors")
    assert "float32" in capsys.readouterr().out


def test_a_compressed_file_is_never_written_over_itself(tmp_path):
    checkpoints.write(tmp_path / "net.safetensors", {"a": torch.randn(8, 8)})
    run("compress", tmp_path / "net.safetensors", "-q")
    before = (tmp_path / "net.sws").read_bytes()
    run("compress", tmp_path / "net.sws", fails="written over itself")
    assert (tmp_path / "net.sws").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "number"),
    [("8MB", 8_000_000), ("1.5 kB", 1500), ("2MiB", 2 << 20), ("700", 700), (".5KIB", 512)],
)
def test_sizes_are_read_as_people_write_them(text, number):
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["8 megabytes", "-3", "", "1e6", "0"])
def test_other_sizes_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 8MB; got"):
        parse_size(text)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    w, v = (torch.randn(shape, generator=generator) for shape in ((60, 50), (50, 40)))
    checkpoints.write(path, {"w": w, "v": 0.3 * v, "b": torch.randn(60, generator=generator)})
    return path


def test_a_file_has_the_size_bits_or_loss_that_is_asked_for(net, tmp_path, capsys):
    for bias_bits in (None, 8):
        out = tmp_path / f"{bias_bits}.sws"
        command.compress(net, out, size="1.8kB", bias_bits=bias_bits, quiet=True)
        assert 0.97 * 1800 <= out.stat().st_size <= 1800
    command.compress(net, tmp_path / "bits.sws", bits=2.5)
    assert re.search(r"^2\.(49\d|500) bits per weight", capsys.readouterr().out, re.M)
    command.compress(net, tmp_path / "loss.sws", loss=0.02)
    printed = capsys.readouterr().out
    assert re.search(r"loss 0\.0(2|19\d)$", printed, re.M)
    assert "k-means, 16 values" in printed  # 3.2 bits per weight
    command.compress(net, tmp_path / "default.sws")
    assert re.search(r"loss 0\.00(5|49\d)$", capsys.readouterr().out, re.M)


def test_what_cannot_be_met_is_refused_with_a_remedy(net, tmp_path):
    out = tmp_path / "x.sws"
    run("compress", net, "--size", "100", "--out", out, fails="the file cannot be smaller than")
    run("compress", net, "--bits", 2, "--loss", 0.1, fails="got --bits and --loss: give one")
    run("compress", net, "--bits", 0, "--out", out, fails="bits must be above 0")
    run("compress", net, "--lossless", "--bits", 2, fails="changes no weight: omit it or --bits")
    run("compress", net, "--lossless", "--curve", fails="changes no weight: omit it or --curve")
    assert not out.exists()


def test_a_run_has_its_mixtures_and_nothing_else_to_ask_for(tmp_path):
    layer = torch.nn.Linear(9, 9)
    x = torch.randn(20, 9)
    fit(
        layer, torch.nn.functional.mse_loss, (x, x), epochs=1, prior=MixturePrior(layer, 3),
        progress=False, optimizer=torch.optim.Adam(layer.parameters()), run=tmp_path / "run",
    )  # fmt: skip
    run("compress", tmp_path / "run", "--bits", 2, fails="`swsmix compress` has no --bits for it")
    run("compress", tmp_path / "run", "--curve", fails="`swsmix compress` has no --curve for it")


def test_a_curve_is_printed_and_drawn_and_falls(net, tmp_path, capsys):
    copy = tmp_path / "net.safetensors"
    copy.write_bytes(net.read_bytes())
    command.compress(copy, curve=True)
    printed = capsys.readouterr().out
    rows = re.findall(r"│\s*(0\.\d+)\s*│\s*([\d.]+)\s*│\s*([\d,]+)\s*│", printed)
    assert len(rows) == 8
    loss, bits = ([float(row[i]) for row in rows] for i in (0, 1))
    size = [int(row[2].replace(",", "")) for row in rows]
    assert loss == sorted(loss) and bits == sorted(bits)[::-1] and size == sorted(size)[::-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net-curve.png", "net.safetensors"]
    with pytest.raises(FileExistsError, match=r"net-curve.png is there already"):
        command.compress(copy, curve=True)
    command.compress(copy, curve=True, bits=2.0, force=True, quiet=True)
    assert len(load_compressed(tmp_path / "net.sws")) == 3


def test_tied_tensors_count_once_in_what_is_printed():
    def report(name, bits, mse):
        return TensorReport(name, 100, 1.0, 4, bits, mse, 0.5, 1.0)

    alone = {"a": report("a", 2.0, 0.1), "c": report("c", 4.0, 0.3)}
    tied = alone | {"b": report("b", 2.0, 0.1)}
    for reports in (alone, tied):
        assert relative_loss(reports) == pytest.approx(0.2)
        assert bits_per_weight(reports) == pytest.approx(3.0)
