"""Checkpoints on disk, one tensor at a time: the same bytes, little memory, the same files back."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch
import typer
from commands import run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swsmix.cli import compress as command
from swsmix.cli import decompress as back_command
from swsmix.cli._interrupts import as_exit_codes
from swsmix.codec import decode, encode, encode_to, encoder, load_compressed, reading, sizes
from swsmix.compression.codebooks import quantize_state, snapped
from swsmix.compression.rate import Network
from swsmix.inspection import checkpoints

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def network():
    """Tensors of every kind, of which some are never quantised; two are equal."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    same = random(60, 50)
    return {
        "embed.weight": same.bfloat16(),
        "0.weight": random(80, 50).half(),
        "0.bias": random(80),
        "1.weight": random(70, 80) * random(70, 1).exp(),
        "double": random(30, 20).double(),
        "fp8": random(40, 40).to(torch.float8_e4m3fn),
        "fp8_scale": random(10, 10),
        "steps": torch.arange(5),
        "mask": random(9) > 0,
        "head.weight": same.bfloat16(),
    }


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards with an index."""
    folder = tmp_path / "net"
    folder.mkdir()
    state = network()
    places = {name: A if i % 3 else B for i, name in enumerate(state)}
    for shard in (A, B):
        own = {name: t for name, t in state.items() if places[name] == shard}
        save_file(own, folder / shard, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def as_bytes(t):
    return t.dtype, tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).tolist()


class Counted(dict):
    """A mapping that says how many of its tensors are in memory."""

    def __init__(self, state):
        super().__init__(state)
        self.alive = self.most = 0

    def __getitem__(self, name):
        t = super().__getitem__(name).clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(t, self._gone)
        return t

    def _gone(self):
        self.alive -= 1

    def items(self):
        return ((name, self[name]) for name in self)

    def values(self):
        return (self[name] for name in self)


@pytest.mark.parametrize("asked", [{"loss": 0.02}, {"bits": 2.0}, {"values": 9}])
def test_from_disk_the_file_has_the_bytes_that_it_has_from_memory(sharded, tmp_path, asked):
    command.compress(sharded, tmp_path / "x.sws", quiet=True, **asked)
    state = {name: t for name, t in network().items() if not name.startswith("fp8")}
    options = {"num_values" if k == "values" else k: v for k, v in asked.items()}
    whole = snapped(network(), quantize_state(state, **options))
    back = load_compressed(tmp_path / "x.sws")
    assert {n: as_bytes(t) for n, t in back.items()} == {n: as_bytes(t) for n, t in whole.items()}
    with (tmp_path / "y.sws").open("wb") as file, reading(tmp_path / "x.sws") as reader:
        encode_to(file, whole, notes=reader.notes)
    assert (tmp_path / "x.sws").read_bytes() == (tmp_path / "y.sws").read_bytes()


def test_pairs_and_mappings_are_encoded_alike():
    state = network()
    assert encode(state) == encode(iter(state.items()))


def test_of_a_large_network_only_sparse_tensors_are_coded_in_contexts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(300, 300, generator=generator) * (torch.arange(300)[:, None] % 2 + 0.2)
    rows = torch.rand(300, 1, generator=generator) < torch.rand(300, 300, generator=generator) ** 3
    state = {"dense": dense.mul(4).round(), "sparse": rows.float()}
    whole, plain = (encode(state, contexts=contexts) for contexts in (True, False))
    monkeypatch.setattr(encoder, "_MANY", 100)
    large = encode(state)
    assert len(whole) < len(large) < len(plain)
    file = io.BytesIO()
    encode_to(file, iter(state.items()), total=180_000)
    assert file.getvalue() == large
    models = {name: size.model for name, size in sizes(large).items()}
    assert "contexts" not in models["dense"] and "contexts" in models["sparse"]


def test_few_tensors_are_in_memory_at_a_time():
    generator = torch.Generator().manual_seed(0)
    state = Counted({f"{i}.w": torch.randn(50, 50, generator=generator) for i in range(8)})
    net = Network(state)
    found = net.for_bits(2.0)
    assert net.encoded_size(found) > 0
    assert state.most <= 2 and state.alive == 0


def test_shards_index_texts_dtypes_and_8_bit_floats_come_back(sharded, tmp_path):
    command.compress(sharded, tmp_path / "x.sws", quiet=True)
    back_command.decompress(tmp_path / "x.sws", quiet=True)
    back = tmp_path / "x"
    assert sorted(p.name for p in back.iterdir()) == sorted(p.name for p in sharded.iterdir())
    maps = [json.loads((f / INDEX).read_text())["weight_map"] for f in (sharded, back)]
    assert maps[0] == maps[1]
    for shard in (A, B):
        before, after = load_file(sharded / shard), load_file(back / shard)
        assert before.keys() == after.keys()
        for name, t in before.items():
            exact = t.ndim < 2 or name.startswith("fp8")
            assert (as_bytes(t) == as_bytes(after[name])) == exact
            assert (t.dtype, t.shape) == (after[name].dtype, after[name].shape)
        with safe_open(back / shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    run("decompress", tmp_path / "x.sws", fails="is there already")
    one = tmp_path / "one.safetensors"
    back_command.decompress(tmp_path / "x.sws", one, quiet=True)
    assert load_file(one).keys() == network().keys()


def test_equal_tensors_are_stored_once_and_tied_ones_come_back_tied(tmp_path):
    w = torch.randn(200, 100)
    torch.save({"a": w, "b": w, "c": w.clone(), "d": w[:100]}, tmp_path / "net.pt")
    command.compress(tmp_path / "net.pt", lossless=True, quiet=True)
    alone = len(encode({"a": w, "d": w[:100]}))
    assert (tmp_path / "net.sws").stat().st_size < alone + 200
    back_command.decompress(tmp_path / "net.sws", tmp_path / "back.pt", quiet=True)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(torch.equal(back[name], w) for name in "abc")
    assert back["a"].data_ptr() == back["b"].data_ptr() != back["c"].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_floats_and_their_scales_are_exact_whatever_is_asked(tmp_path, dtype):
    bits = torch.arange(256, dtype=torch.uint8).repeat(40).view(64, 160)
    held = {"q.weight": bits.view(dtype), "q.weight_scale_inv": torch.rand(20, 20)}
    save_file(held | {"p.weight": torch.randn(64, 64)}, tmp_path / "net.safetensors")
    for options in ({"values": 4}, {"bias_bits": 8}):  # with 8 bits, the default loss
        command.compress(tmp_path / "net.safetensors", force=True, quiet=True, **options)
        back = load_compressed(tmp_path / "net.sws")
        assert all(as_bytes(back[name]) == as_bytes(t) for name, t in held.items())
        assert len(back["p.weight"].unique()) < 300
    state = {name: t.to(dtype) for name, t in network().items() if t.is_floating_point()}
    assert {n: as_bytes(t) for n, t in decode(encode(state)).items()} == {
        n: as_bytes(t) for n, t in state.items()
    }


def test_what_cannot_be_read_is_named(tmp_path):
    state = {"a": torch.randn(9, 9), "b": torch.empty(3, 3, device="meta"), "c": torch.ones(2)}
    torch.save(state | {"d": torch.empty(4, 4, device="meta")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"without 2 tensors .*such as b: on the meta .*d: on the"):
        checkpoints.read_network(tmp_path / "a.pt")


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory):
    """Tensors that take a while, in two shards without an index, and the same compressed."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("two") / "net"
    folder.mkdir()
    for shard in (A, B):
        own = {f"{shard[10]}.{i}": torch.randn(1200, 1000, generator=generator) for i in range(3)}
        save_file(own, folder / shard)
    command.compress(folder, quiet=True, values=8)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["compress", "decompress"])
def test_an_interrupted_command_leaves_nothing_half_written(two_shards, tmp_path, number, way):
    if way == "decompress":
        shutil.copy(two_shards.with_suffix(".sws"), tmp_path)
    else:
        shutil.copytree(two_shards, tmp_path / "net")
    before = sorted(p.name for p in tmp_path.iterdir())
    target = ["decompress", "net.sws", "--out", "back"] if way == "decompress" else [way, "net"]
    child = subprocess.Popen(
        [sys.executable, "-c", "from swsmix.cli import main\nmain()", *target, "-q"], cwd=tmp_path
    )
    while child.poll() is None and sorted(p.name for p in tmp_path.iterdir()) == before:
        time.sleep(0.01)  # until it writes
    child.send_signal(number)
    assert child.wait() == 128 + number
    assert sorted(p.name for p in tmp_path.iterdir()) == before


MEMORY = """
import sys
from pathlib import Path
from swsmix.cli import compress as one, decompress as other
folder = Path(sys.argv[1])

def both(name):
    one.compress(folder / name, folder / f"{name}.sws", quiet=True)
    other.decompress(folder / f"{name}.sws", folder / f"{name}-back.safetensors", quiet=True)

def peak():  # `ru_maxrss` would begin with that of the process that started this one
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0])

both("small.safetensors")  # imports, and compiled loops
before = peak()
both("net.safetensors")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the resident size in kilobytes")
def test_the_memory_is_that_of_a_few_tensors_whatever_the_file(tmp_path):
    """20 tensors of 4 MB: 80 MB and as much back, in less than three tensors and 60 MB."""
    generator = torch.Generator().manual_seed(0)
    state = {
        f"{i}.weight": torch.randn(2000, 1000, generator=generator).bfloat16() for i in range(20)
    }
    save_file(state, tmp_path / "net.safetensors")
    save_file({"w": state["0.weight"]}, tmp_path / "small.safetensors")
    del state
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) / 1000 < 3 * 4 + 60


@pytest.mark.parametrize(
    ("text", "code"), [("... _Terminated() ...", 143), ("... KeyboardInterrupt() ...", 130)]
)
def test_an_interrupt_that_an_extension_in_rust_turned_into_a_panic_has_its_code(text, code):
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(typer.Exit) as ended, as_exit_codes():
        raise panic(text)
    assert ended.value.exit_code == code
    with pytest.raises(panic), as_exit_codes():
        raise panic("index out of bounds")
