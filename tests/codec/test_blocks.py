"""Large tensors: blocks, sections, one tensor of many, and contexts that never cost."""

import hashlib
import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from many_sections import make_small, network, numbers, same

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
from swsmix.codec.decoder import Reader
from swsmix.codec.header import DTYPES
from swsmix.codec.scans import ScanChoice
from swsmix.codec.stream import StreamDecoder
from swsmix.compression import save_compressed
from swsmix.tables.backends import uncompiled


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)


@settings(max_examples=30)
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


@settings(max_examples=20)
@given(
    st.sampled_from(["normal", "laplace", "scaled", "drifting", "sparse"]),
    st.tuples(st.integers(20, 150), st.integers(20, 150)),
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
    # Bit patterns: -0 is a value of its own.
    share = w.view(torch.int32).unique(return_counts=True)[1].double() / w.numel()
    order_0 = w.numel() * torch.special.entr(share).sum().item() / math.log(256.0)
    # A name, a shape, the values, and for each block how often they occur.
    blocks_of = -(-w.numel() // 9000) if large else 1
    assert len(plain) <= 1.003 * order_0 + 64 + (4 + 3 * blocks_of) * len(share)
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


def test_tensors_of_one_shape_are_told_apart():
    state = {"a": numbers(40, 60, salt=1), "b": numbers(40, 60, salt=2)}
    state["c"] = state["a"].clone()
    entries = Reader(io.BytesIO(encode(state))).entries
    assert [entry.original for entry in entries] == [None, None, 0]
