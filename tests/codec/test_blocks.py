"""Large tensors: blocks, sections, one tensor of many, and contexts that never cost."""

import hashlib
import io
import itertools
import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from damage import as_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_weights import hashed, structured

from swsmix.codec import (
    blocks,
    choosing,
    decode,
    decode_books,
    encode,
    encode_to,
    encoder,
    load_compressed,
    sections,
    sizes,
)
from swsmix.codec.budget import ContextBudget
from swsmix.codec.decoder import Reader
from swsmix.codec.header import DTYPES, TableWriter
from swsmix.codec.index import Numbers, code_zero_order
from swsmix.codec.scans import ScanChoice
from swsmix.codec.stream import StreamDecoder
from swsmix.compression import save_compressed
from swsmix.tables.backends import uncompiled


@pytest.fixture
def small(monkeypatch):
    """Sections and blocks so small that a test has many of them."""
    monkeypatch.setattr(encoder, "_LARGE", 400)
    monkeypatch.setattr(blocks, "WEIGHTS", 300)
    monkeypatch.setattr(blocks, "WEIGHTS_IN_CONTEXT", 1000)
    monkeypatch.setattr(choosing, "_TRIAL", 400)


def same(a, b):
    return list(a) == list(b) and all(as_raw(a[n]) == as_raw(b[n]) for n in a)


def numbers(*shape, values=7, salt=1):
    """Deterministic component numbers as floats, the commonest at 0."""
    return torch.from_numpy(np.asarray(np.floor(values * hashed(*shape, salt=salt) ** 2))).float()


def network():
    """Tensors of every kind: blocks, in contexts and not, shared streams, books, copies, values."""
    noise = torch.from_numpy(hashed(900, salt=3) - 0.5).float()
    return {
        "first.weight": structured(40, 60, 1),
        "first.bias": noise[:8],
        "second.weight": structured(150, 40, 2),
        "second.bias": numbers(50, values=3),
        "tied.weight": structured(40, 60, 1),
        "third.weight": numbers(64, 5, 3, 3, values=5),
        "same_book.weight": numbers(64, 45, values=5, salt=9),
        "plain": noise.view(30, 30),
        "grid": torch.from_numpy(np.rint(hashed(700, salt=4) * 9000)).double() / 64,
        "tail.bias": noise[5:12],
        "count": torch.tensor(7),
        "zeros": torch.zeros(200, 30),
        "long": numbers(4000, values=9, salt=5),
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 40), max_size=3).map(tuple)
            | st.sampled_from([(997,), (1, 900), (900, 1)]),
            st.sampled_from([1, 2, 5, 300]),
            st.sampled_from(DTYPES),
            st.integers(0, 99),
        ),
        max_size=4,
    ),
    st.sampled_from([64, 4000]),
)
def test_blocks_of_any_shape_give_back_every_bit(tensors, large):
    state = {
        f"layer{i}.weight": numbers(*shape, values=k, salt=salt).to(dtype).view(shape)
        for i, (shape, k, dtype, salt) in enumerate(tensors)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "_LARGE", large)
        patch.setattr(blocks, "WEIGHTS", 200)
        patch.setattr(blocks, "WEIGHTS_IN_CONTEXT", 500)
        patch.setattr(choosing, "_TRIAL", 300)
        data = encode(state)
    assert same(decode(data, max_weights=1 << 20), state)


@pytest.mark.usefixtures("small")
def test_a_network_in_many_sections_comes_back_and_uses_every_kind_of_them():
    state = network()
    data = encode(state)
    assert data[4] == 3 and same(decode(data), state)
    entries = {entry.name: entry for entry in Reader(io.BytesIO(data)).entries}
    in_blocks = {name for name, entry in entries.items() if entry.in_blocks}
    wanted = {"first.weight", "second.weight", "third.weight", "plain", "grid", "long"}
    assert wanted <= in_blocks and "first.bias" not in in_blocks
    assert entries["tied.weight"].original is not None and entries["second.weight"].sides == 0
    assert any(len(entries[name].model.models) > 2 for name in ("third.weight", "long"))
    books = decode_books(data)[1]
    assert any({"third.weight", "same_book.weight"} <= set(book.names) for book in books)


@pytest.mark.usefixtures("small")
def test_the_bytes_are_the_same_for_any_number_of_workers_and_without_numba():
    before, found = torch.get_num_threads(), set()
    for workers in (1, 2, 3):
        torch.set_num_threads(workers)
        data = encode(network())
        assert same(decode(data), network())
        found.add(data)
    torch.set_num_threads(before)
    with uncompiled():
        found.add(encode(network()))
        assert same(decode(data), network())
    assert len(found) == 1


@pytest.mark.usefixtures("small")
def test_the_layout_stays_so_that_files_stay_readable():
    # By its digest: a file of version 3 of before is read as other numbers, or not at all.
    assert hashlib.sha256(encode(network())).hexdigest()[:16] == "78cc98dfbb60fea8"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("version", [2, 3])
def test_some_tensors_decoded_are_those_of_the_whole(version, monkeypatch, tmp_path):
    if version == 2:
        monkeypatch.setattr(encoder, "_LARGE", 1 << 40)
    state = network()
    save_compressed(tmp_path / "net.sws", state)
    assert (tmp_path / "net.sws").read_bytes()[4] == version
    names = list(state)
    for some in ([], *itertools.combinations(names, 1), names[:3], names[::-1]):
        back = load_compressed(tmp_path / "net.sws", names=some)
        assert same(back, {name: state[name] for name in names if name in some})


@pytest.mark.usefixtures("small")
def test_the_streams_of_other_tensors_are_not_touched(monkeypatch):
    data, read = encode(network()), []

    def payload(self, file):
        read.append(self.begin)
        return original(self, file)

    original = sections.Section.payload
    monkeypatch.setattr(sections.Section, "payload", payload)
    places = {entry.name: entry.section for entry in Reader(io.BytesIO(data)).entries}
    begin = [section.begin for section in Reader(io.BytesIO(data))._sections]
    needs = {
        "long": ["long"],
        "tied.weight": ["first.weight", "tied.weight"],
        "second.weight": ["first.weight", "second.weight"],  # whose rows its contexts ask for
        "same_book.weight": ["third.weight", "same_book.weight"],
    }
    for name, those in needs.items():
        read.clear()
        decode(data, names=[name])
        assert read == [begin[places[other]] for other in those]
    # Damage elsewhere is not seen, nor in the way; in the tensor itself it is.
    bad = bytearray(data)
    bad[begin[places["grid"]] + 5] ^= 1
    assert same(decode(bytes(bad), names=["long"]), {"long": network()["long"]})
    for names in (None, ["grid"]):
        with pytest.raises(ValueError, match=r"it is damaged: .*checksum"):
            decode(bytes(bad), names=names)


def test_an_unknown_name_lists_those_that_are_close(tmp_path):
    save_compressed(tmp_path / "net.sws", {"fc1.weight": torch.ones(3), "fc2.bias": torch.ones(2)})
    with pytest.raises(KeyError, match=r"net.sws: .*no tensor 'fc1.weigth'.* fc1.weight"):
        load_compressed(tmp_path / "net.sws", names=["fc1.weigth"])
    with pytest.raises(KeyError, match=r"it has 2, such as fc1\.weight, fc2\.bias"):
        decode((tmp_path / "net.sws").read_bytes(), names=["zzz"])


@pytest.mark.usefixtures("small")
def test_tensors_from_a_generator_are_written_as_they_come():
    state, file, at = network(), io.BytesIO(), []

    def pairs():
        for name, t in state.items():
            at.append(file.tell())
            yield name, t.clone()

    assert encode_to(file, pairs()) == len(file.getvalue())
    assert file.getvalue() == encode(state)
    assert at[2] > 0 and at == sorted(at) and len(set(at)) > 5


def random_tensor(kind, shape, values, seed):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape)
    if kind == "laplace":
        w = rng.laplace(size=shape)
    if kind == "scaled":
        w *= np.exp(rng.normal(size=(shape[0], 1))) * np.exp(0.3 * rng.normal(size=shape[1]))
    if kind == "drifting":  # contexts save at first, and cost later
        w[: shape[0] // 2] = np.sign(np.cumsum(rng.normal(size=shape[1])))
    if kind == "sparse":
        w *= rng.random(shape) < rng.random((shape[0], 1)) ** 3
    half = values // 2
    return torch.from_numpy(np.clip(np.rint(w * half / 2.5), -half, half - 1)).float()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["normal", "laplace", "scaled", "drifting", "sparse"]),
    st.tuples(st.integers(20, 300), st.integers(20, 300)),
    st.sampled_from([2, 8, 16, 32]),
    st.integers(0, 99),
    st.booleans(),
)
def test_contexts_never_cost_more_than_a_thousandth_and_a_bit(kind, shape, values, seed, large):
    w = random_tensor(kind, shape, values, seed)
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(encoder, "_LARGE", 1000)
            patch.setattr(blocks, "WEIGHTS_IN_CONTEXT", 9000)
            patch.setattr(choosing, "_TRIAL", 2000)
        chosen, plain = encode({"w": w}), encode({"w": w}, contexts=False)
    assert len(chosen) <= 1.003 * len(plain) + 32
    assert same(decode(chosen), {"w": w})


@pytest.mark.usefixtures("small")
def test_a_block_on_which_the_chosen_contexts_cost_is_coded_without(monkeypatch):
    monkeypatch.setattr(blocks, "choose_for_blocks", lambda *_: ScanChoice(0, 1))
    monkeypatch.setattr(blocks, "WEIGHTS", blocks.WEIGHTS_IN_CONTEXT)
    w = numbers(60, 60, values=16)
    chosen, plain = encode({"w": w}), encode({"w": w}, contexts=False)
    assert chosen[4] == 3 and len(chosen) <= len(plain) + 16


def test_contexts_that_save_a_few_hundredths_on_a_dense_layer_are_taken():
    # Its trial on 2^16 weights is mostly learning.
    w = random_tensor("scaled", (700, 784), 16, 0)
    chosen, plain = encode({"w": w}), encode({"w": w}, contexts=False)
    assert len(chosen) < 0.975 * len(plain)
    assert "contexts" in sizes(chosen)["w"].model


def test_numbers_are_in_the_smallest_type_on_both_ways(monkeypatch):
    seen = []
    symbols = StreamDecoder.symbols

    def spy(self, *arguments):
        seen.append(symbols(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(StreamDecoder, "symbols", spy)
    for values, dtype in ((250, np.uint8), (300, np.uint16)):
        w = numbers(300, 300, values=values)
        seen.clear()
        assert same(decode(encode({"w": w}, contexts=False)), {"w": w})
        assert max(seen, key=len).dtype == dtype
        assert encoder._index(w.numpy().ravel().view("u4"), np.unique(w).view("u4")).dtype == dtype


@pytest.mark.usefixtures("small")
def test_damaged_sections_with_mended_checksums_give_an_error_or_tensors():
    rng, data = np.random.default_rng(0), encode(network())
    outcomes = {"error": 0, "tensors": 0}
    for _ in range(150):
        bad = bytearray(mended(data, rng))
        try:
            state = decode(bytes(bad), max_weights=1 << 16)
        except ValueError:
            outcomes["error"] += 1
        else:
            outcomes["tensors"] += 1
            assert sum(t.numel() for t in state.values()) <= 1 << 16
    assert min(outcomes.values()) > 0


def mended(data, rng):
    """One section is damaged in its table or payload; all checksums fit."""
    found, _ = sections.read_sections(io.BytesIO(data), whole=True)
    file = io.BytesIO()
    writer = sections.SectionWriter(file)
    chosen = rng.integers(len(found))
    for i, section in enumerate(found):
        table, payload = bytearray(section.table), bytearray(section.payload(io.BytesIO(data)))
        if i == chosen:
            part = payload if payload and rng.random() < 0.5 else table
            for _ in range(rng.integers(1, 3)):
                part[rng.integers(len(part))] ^= 1 << rng.integers(8)
        writer.add(bytes(table), [bytes(payload)], in_blocks=True)
    writer.finish()
    return file.getvalue()


@pytest.mark.usefixtures("small")
def test_every_flipped_byte_and_every_cut_gives_an_error():
    data, rng = encode(network()), np.random.default_rng(1)
    for _ in range(400):
        bad = bytearray(data)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        with pytest.raises(ValueError, match=r"it is (damaged|not a swsmix file)"):
            decode(bytes(bad))
    begins = [section.begin for section in Reader(io.BytesIO(data))._sections]
    for cut in (*begins, *rng.integers(0, len(data), 100)):
        for names in (None, ["long"]):
            with pytest.raises(ValueError, match=r"it is (damaged|not a swsmix file)"):
                decode(data[:cut], names=names)


def in_sections(*tables, payload=b""):
    """A file of version 3 with good checksums."""
    file = io.BytesIO()
    writer = sections.SectionWriter(file)
    for numbers_of in tables:
        table = TableWriter()
        for i, number in enumerate(numbers_of):
            table.name(f"t{number}") if i == 1 else table.number(number)
        writer.add(bytes(table.data), [payload], in_blocks=True)
    writer.finish()
    return file.getvalue()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((0, 0, 3, 0), "that is not there"),
        ((0, 0, 2, 0, 1, 9, 0), "codebook that is not there"),
        ((0, 0, 1, 0, 0, 1, 10, 0, 0), "without rows"),
        ((0, 0, 1, 0, 2, 1 << 40, 9, 2, 10, 0, 0, 1), "ends too early"),  # 2^40 blocks
        ((0, 0, 1, 0, 2, 4, 9, 2, 10, 0, 0, 4, 0, 9), "lengths"),
        ((0, 0, 0, 0, 1, 9, 0), "not as many"),
    ],
)
def test_impossible_blocks_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        decode(in_sections(table), max_weights=1 << 50)


def test_a_stream_of_a_block_that_goes_on_is_refused():
    index = numbers(8, 9, values=3).numpy().astype(np.uint8).ravel()
    of_them = Numbers(3, (8, 9), np.zeros(9, np.int64))
    model, coded = code_zero_order(index, of_them)
    stream = coded.to_bytes()
    for more in (b"", bytes(8)):
        stored = blocks.BlockedIndex(8, [model], [len(stream + more)])
        with pytest.raises(ValueError, match="goes on") if more else nullcontext():
            budget = ContextBudget(0)
            back, _ = stored.read(memoryview(stream + more), of_them, budget, StreamDecoder)
            assert (back == index).all()


def test_a_file_that_goes_on_after_its_end_is_refused():
    longer = in_sections((0, 0, 0, 0, 1, 0, 0))
    assert decode(longer)["t0"].shape == (0,)
    longer = longer[:-4] + bytes(3)
    longer += struct.pack("<I", zlib.crc32(longer))
    for names in (None, ["t0"]):
        with pytest.raises(ValueError, match="goes on after its end"):
            decode(longer, names=names)


def test_tensors_of_one_shape_are_told_apart():
    state = {"a": numbers(40, 60, salt=1), "b": numbers(40, 60, salt=2)}
    state["c"] = state["a"].clone()
    entries = Reader(io.BytesIO(encode(state))).entries
    assert [entry.original for entry in entries] == [None, None, 0]


def test_the_length_of_a_section_is_checked():
    data = encode({"w": torch.ones(3)})
    three = data[:4] + b"\3" + b"\xff" * 8 + b"\x7f" + bytes(8)
    for bad in (three, data[:4] + b"\3" + b"\x80\0" + bytes(8)):
        mended_bytes = bad + struct.pack("<I", zlib.crc32(bad))
        for names in (None, ["w"]):
            with pytest.raises(ValueError):
                decode(mended_bytes, names=names)
