"""`swsmix inspect FILE --bytes`: two tables, or one clear line."""

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from swsmix import codec
from swsmix.cli import app


def inspect(*arguments):
    words = ["inspect", *map(str, arguments), "--bytes"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.fixture
def compressed(tmp_path):
    path = tmp_path / "net.sws"
    state = {
        "fc.weight": torch.tensor([0.0, 0.5, -0.5, 0.0]).repeat(30, 10),
        "fc.bias": torch.logspace(-20, 20, 30),
    }
    path.write_bytes(codec.encode(state))
    return path


def test_a_compressed_file_is_told_tensor_by_tensor_and_nothing_is_written(
    compressed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    lines = inspect(compressed).splitlines()
    total = f"{compressed.stat().st_size:,}"
    for words in (
        ["fc.weight", "codebook", "1,200", "3"],
        ["fc.bias", "values", " 30 "],
        ["total", "1,230", total],
        ["exact values", "121"],
        ["total", total, "100.0 %"],
    ):
        assert any(all(word in line for word in words) for line in lines), words
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_are_refused_and_it_is_said_how_to_get_one(compressed, tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "net.safetensors")
    with pytest.raises(
        ValueError, match=r"needs a compressed file .*safetensors is not one.*`swsmix c"
    ):
        inspect(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"is a folder: name a file in it"):
        inspect(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there"):
        inspect(tmp_path / "none.sws")
    damaged = bytearray(compressed.read_bytes())
    damaged[12] ^= 1
    compressed.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cannot read .*net.sws: it is damaged"):
        inspect(compressed)


def test_options_that_would_do_nothing_are_refused(compressed):
    with pytest.raises(ValueError, match="omit --html, --seed"):
        inspect(compressed, "--html", "--seed", 0)
