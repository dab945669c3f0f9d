import functools
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swsmix import MixturePrior, codec, snap_
from swsmix.codec import decode, decode_books, encode, load_compressed, sizes
from swsmix.codec.decoder import Reader
from swsmix.codec.header import DTYPES, TableWriter
from swsmix.compression import save_compressed
from swsmix.compression.snap import snap_to_grid

# Networks that no prior has trained are snapped here.
pytestmark = pytest.mark.filterwarnings("ignore:snapping took")

LIMIT = 1 << 20


def same(a, b):
    """Equal names in order, dtypes, shapes and bits (nan's too)."""
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and a[n].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        == b[n].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for n in a
    )


def snapped(shape, num_values, dtype, seed, skew=3.0):
    generator = np.random.default_rng(seed)
    share = generator.random(num_values) ** skew + 1e-9
    index = generator.choice(num_values, size=shape, p=share / share.sum())
    if dtype == torch.bool or not dtype.is_floating_point:
        values = torch.from_numpy(generator.integers(0, 2, num_values))
    else:
        values = torch.from_numpy(generator.normal(size=num_values))
        values[0] = 0.0
    return values.to(dtype)[torch.from_numpy(np.asarray(index))]


shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple) | st.just((70, 40))


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(
            shapes,
            st.sampled_from([1, 2, 3, 16, 256, 300]),
            st.sampled_from(DTYPES),
            st.integers(0, 10**6),
        ),
        max_size=4,
    )
)
def test_decode_gives_back_every_bit(tensors):
    state = {
        f"layer{i}.weight": snapped(shape, k, dtype, seed)
        for i, (shape, k, dtype, seed) in enumerate(tensors)
    }
    data = encode(state)
    assert same(decode(data, max_weights=LIMIT), state)
    assert encode(state) == data


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bits_survive(dtype):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (6400,), generator=generator)
    t = raw.to(torch.uint8).view(dtype).view(-1, 8)  # nans of all kinds among them
    few = t.reshape(-1)[:7].repeat(20).view(10, 14)
    state = {"many": t, "few": few, "": t[:0], "transposed": few.T}
    assert same(decode(encode(state), max_weights=LIMIT), state)


def test_zeros_of_both_signs_are_kept_apart():
    state = {"w": torch.tensor([0.0, -0.0] * 50), "b": torch.tensor([0.0, -0.0, 1.0])}
    assert same(decode(encode(state), max_weights=LIMIT), state)


def test_copies_are_stored_once():
    w = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    one, two = encode({"a": w}), encode({"a": w, "b": w.clone()})
    assert len(two) < len(one) + 16
    back = decode(two, max_weights=LIMIT)
    assert torch.equal(back["b"], w) and back["a"].data_ptr() != back["b"].data_ptr()


def test_save_and_load_give_the_snapped_network_and_leave_the_network_alone(tmp_path):
    net = nn.Sequential(nn.Linear(50, 30), nn.BatchNorm1d(30), nn.Linear(30, 5))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    prior = MixturePrior(net, 5, groups="tensor", zero=True)
    size = save_compressed(tmp_path / "net.sws", net, prior)
    assert same(net.state_dict(), before)
    snap_(prior)
    assert same(load_compressed(tmp_path / "net.sws"), net.state_dict())
    assert (tmp_path / "net.sws").stat().st_size == size


def test_the_size_by_tensor_adds_up_to_the_file():
    state = {"a": snapped((60, 50), 16, torch.float32, 0), "b": torch.randn(500)}
    parts = sum(part.bits for part in sizes(encode(state)).values()) / 8
    assert parts <= len(encode(state)) <= parts + 24


@pytest.mark.parametrize("skew", [0.0, 30.0])
@pytest.mark.parametrize("num_values", [2, 256])
@pytest.mark.parametrize("shape", [(100,), (60, 60), (16, 8, 3, 3)])
def test_an_index_is_never_much_above_its_zero_order_entropy(shape, num_values, skew):
    state = {"w": snapped(shape, num_values, torch.float32, 1, skew)}
    size = sizes(encode(state))["w"]
    if size.num_values:
        assert size.index_bits <= 1.02 * size.entropy_bits + 200 * 8


def test_a_codebook_is_shared_where_that_is_shorter_than_one_of_its_own():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    all_of_them, few, most = (values[:k].repeat(20) for k in (100, 3, 90))
    _, books = decode_books(encode({"all": all_of_them, "few": few, "most": most}))
    assert [book.names for book in books] == [("all", "most"), ("few",)]


def test_a_file_of_zeros_is_tiny():
    assert len(encode({"w": torch.zeros(1000, 1000)})) < 40


@functools.cache
def valid_files():
    """Small files of every kind of content: values, codebooks, copies; each model, each scan."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, generator=generator)
    plain = {"layer1.weight": snapped((12, 10), 5, torch.float32, 0), "layer1.bias": noise}
    plain |= {"again": noise, "n": torch.tensor(7), "empty": noise[:0], "zero": torch.zeros(9, 9)}
    shared = {
        "a": snapped((20, 9), 8, torch.bfloat16, 1),
        "b": snapped((8, 9), 8, torch.bfloat16, 1),
    }
    shared["grid"] = snap_to_grid(noise, 8)
    files = [encode(plain), encode(shared)]
    for shape in ((24, 36), (900,), (8, 6, 3, 3)):
        dense = (torch.rand(shape[0], generator=generator) ** 6).view(-1, *[1] * (len(shape) - 1))
        w = torch.randint(1, 4, shape, generator=generator).float()
        w *= torch.rand(shape, generator=generator) < dense
        if len(shape) == 1:
            w = w.sort().values
        files.append(encode({"w": w}))
        assert model_of(files[-1]) == 2
    born = (torch.arange(40)[:, None] >= 2 * torch.arange(20)).float().T.contiguous()
    born *= torch.rand(born.shape, generator=generator) < 0.6
    born = born[born.ne(0).int().argmax(1).argsort(stable=True)]
    files.append(encode({"w": born}))
    assert model_of(files[-1]) == 2
    return files


def model_of(data):
    """The number of the model of the only tensor's index."""
    return Reader(io.BytesIO(data)).entries[0].model.number


def mutations(data, rng, count):
    for _ in range(count):
        bad = bytearray(data)
        kind = rng.integers(4)
        if kind == 0:  # bits flip, or bytes change
            for _ in range(rng.integers(1, 4)):
                bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        elif kind == 1:
            bad[rng.integers(len(bad))] = rng.choice([0, 1, 127, 128, 255])
        elif kind == 2:  # truncated
            del bad[rng.integers(len(bad)) :]
        else:  # a piece goes, or comes twice
            begin, end = np.sort(rng.integers(0, len(bad), 2))
            bad[begin:end] = bad[begin:end] * int(rng.choice([0, 2]))
        if bytes(bad) != data:
            yield bytes(bad)


def repaired(data):
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def test_ten_thousand_damaged_files_each_give_an_error():
    rng = np.random.default_rng(0)
    for data in valid_files():
        for bad in mutations(data, rng, 2000):
            with pytest.raises(ValueError, match=r"it is (damaged|not a swsmix file)"):
                decode(bad)


def test_hostile_files_with_a_good_checksum_neither_crash_nor_hang():
    """Mutations whose checksum fits again: an error or some tensors, within `max_weights`.

    There are more of them, and of other files, in tests/hunts/test_fuzz.py.
    """
    rng = np.random.default_rng(0)
    outcomes = {"error": 0, "tensors": 0}
    for data in valid_files():
        for bad in mutations(data, rng, 20):
            if len(bad) < 5:
                continue
            try:
                state = decode(repaired(bad), max_weights=4096)
            except ValueError:
                outcomes["error"] += 1
            else:
                outcomes["tensors"] += 1
                assert sum(t.numel() for t in state.values()) <= 4096
    assert min(outcomes.values()) > 0


def test_no_memory_is_taken_beyond_max_weights():
    # Each of these declares far more than it holds.
    huge = [{"w": torch.zeros(1 << 12, 1 << 12)}, {"w": torch.zeros(0, 1 << 40)}]
    files = [encode(state) for state in huge]
    assert decode(files[1])["w"].shape == (0, 1 << 40)
    tracemalloc.start()
    with pytest.raises(ValueError, match="max_weights"):
        decode(files[0], max_weights=1000)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def table(write):
    """The bytes of a file whose tensor table is written by a function."""
    front, body = TableWriter(), TableWriter()
    write(body)
    front.number(len(body.data))
    return repaired(b"SWSM\2" + front.data + body.data + bytes(4))


def empty_tensor(writer):
    for number in (0, 0, 1, 0, 0):  # values, float32, of one dimension, without elements, plain
        writer.number(number)


def test_names_take_no_memory_that_the_file_does_not_have():
    def long(writer):
        writer.number(1)
        writer.number(20_000)
        writer.number(0)
        writer.number(60_000)
        writer.data += b"a" * 60_000
        new = writer._parts.__len__() + 1
        for _ in range(19_999):
            writer.number(new)
        empty_tensor(writer)

    def many(writer):  # each of a name of 60,000 bytes that the first has told
        writer.number(1000)
        for i in range(1000):
            writer.name("a" * 60_000 + f".{i}")
            writer._names = 0
            empty_tensor(writer)

    for write in (long, many):
        data = table(write)
        tracemalloc.start()
        with pytest.raises(ValueError, match="names in the tensor table are too long"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
        tracemalloc.stop()


def test_a_name_that_could_not_be_read_back_is_refused_and_the_longest_comes_back():
    longest = "a.é" + "." * 65_531
    state = {longest: torch.zeros(3)}
    assert same(decode(encode(state)), state)
    with pytest.raises(ValueError, match="less than 65,536 bytes"):
        encode({longest + "b": torch.zeros(3)})


def test_tensors_without_elements_count_towards_max_weights_too():
    data = encode({f"x{i}": torch.zeros(0) for i in range(100)})
    assert len(decode(data, max_weights=100)) == 100
    with pytest.raises(ValueError, match="max_weights = 99"):
        decode(data, max_weights=99)


def test_nothing_is_written_over_a_file_until_it_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "net.sws"
    save_compressed(path, {"w": torch.ones(10)})
    before = path.read_bytes()

    def fail(out, state, **_):
        out.write(encode(state)[:5])
        raise OSError("disk full")

    monkeypatch.setattr(codec, "encode_to", fail)
    with pytest.raises(OSError, match="disk full"):
        save_compressed(path, {"w": torch.zeros(10)})
    monkeypatch.undo()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_larger_file_than_asked_for_is_refused_before_it_allocates():
    data = encode({"w": torch.zeros(1000, 1000)})
    with pytest.raises(ValueError, match=r"more than max_weights = 999,999 numbers"):
        decode(data, max_weights=999_999)
    assert decode(data, max_weights=10**6)["w"].shape == (1000, 1000)


def test_foreign_damaged_and_newer_files_are_told_apart(tmp_path):
    data = encode({"w": torch.arange(10.0)})
    for bad, message in (
        (b"", "not a swsmix file"),
        (b"PK\3\4" + data, "not a swsmix file"),
        (data[:8], "ends too early"),
        (data[:-1], "checksum"),
        (repaired(data[:4] + b"\7" + data[5:]), "version 7"),
    ):
        path = tmp_path / "net.sws"
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=message) as error:
            load_compressed(path)
        assert str(path) in str(error.value)
