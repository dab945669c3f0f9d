"""Damaged or impossible sections and blocks give an error, never other tensors."""

import io
import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from many_sections import make_small, network, numbers

from swsmix.codec import blocks, decode, encode, sections
from swsmix.codec.budget import ContextBudget
from swsmix.codec.decoder import Reader
from swsmix.codec.header import TableWriter
from swsmix.codec.index import Numbers, code_zero_order
from swsmix.codec.stream import StreamDecoder


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)


@pytest.mark.usefixtures("small")
def test_damaged_sections_with_mended_checksums_give_an_error_or_tensors():
    rng, data = np.random.default_rng(0), encode(network())
    outcomes = {"error": 0, "tensors": 0}
    for _ in range(60):
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


def test_the_length_of_a_section_is_checked():
    data = encode({"w": torch.ones(3)})
    three = data[:4] + b"\3" + b"\xff" * 8 + b"\x7f" + bytes(8)
    for bad in (three, data[:4] + b"\3" + b"\x80\0" + bytes(8)):
        mended_bytes = bad + struct.pack("<I", zlib.crc32(bad))
        for names in (None, ["w"]):
            with pytest.raises(ValueError):
                decode(mended_bytes, names=names)
