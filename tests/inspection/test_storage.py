"""Where the bytes of a compressed file are: the rows add up to it, and each says the truth."""

import functools
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from swsmix import codec
from swsmix.codec import encode, sizes
from swsmix.codec.decoder import read_parts
from swsmix.codec.stream import StreamMeter
from swsmix.inspection.storage import byte_tables, whole_bytes


def snapped(shape, num_values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_values, generator=generator)
    return values[torch.randint(num_values, shape, generator=generator)]


def striped(rows, columns):
    """Zeros but for a few dense rows, which the contexts find."""
    w = snapped((rows, columns), 4, 5)
    w[torch.arange(rows) % 7 > 0] = 0.0
    return w


STATES = {
    "one": {"w": snapped((20, 50), 16)},
    "every kind": {
        "conv.weight": snapped((8, 4, 3, 3), 16),
        "conv.bias": torch.logspace(-20, 20, 8),
        "fc.weight": striped(40, 30),
        "fc.bias": torch.arange(40) / 8.0,
        "shared": snapped((20, 20), 16),
        "copy": snapped((20, 15), 16, 3),
        "same": snapped((20, 15), 16, 3),
        "zeros": torch.zeros(100, 100),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor(7),
        "\x1b[2J[red]\u202ename": torch.arange(5.0),
    },
    "a large codebook": {"w": snapped((100, 60), 2000)},
    "nothing": {},
}
EVERY = pytest.mark.parametrize("name", STATES)


@functools.cache
def file_of(name):
    """The bytes; coded once, for the type checker of these tests makes that slow."""
    return encode(STATES[name])


def tables_of(data):
    """The two tables as lists of rows, each a list of texts."""
    shown = byte_tables(sizes(data), len(data)).renderables
    return [
        [list(map(str, row)) for row in zip(*(column.cells for column in t.columns), strict=True)]
        for t in (shown[0], shown[2])
    ]


def number(text):
    return int(text.replace(",", ""))


@EVERY
def test_the_bytes_of_both_tables_add_up_to_the_file(name):
    data = file_of(name)
    tensors, purposes = tables_of(data)
    by_tensor = [number(row[4]) for row in tensors]
    by_purpose = [number(row[1]) for row in purposes]
    for rows in (by_tensor, by_purpose):
        assert rows[-1] == len(data) == sum(rows[:-1])
        assert 9 <= rows[-2] <= 28  # all but a little is some tensor's
    assert by_tensor[-2] == by_purpose[-2]
    assert len(tensors) == len(STATES[name]) + 2


def test_each_part_of_a_tensor_is_what_the_format_says():
    found = sizes(file_of("every kind")) | sizes(file_of("a large codebook"))
    # One byte for the form of the numbers, and four each.
    assert found["conv.bias"].value_bits == 8 * (1 + 4 * 8)
    assert found["w"].codebook_bits == 8 * (2 + 1 + 4 * found["w"].num_values)
    assert found["shared"].codebook_bits == 8  # its number
    # One part of a known name, one of 5 letters; kind, type, number of sizes, two sizes.
    assert found["shared"].name_bits == 8 * (1 + 1 + 1 + 6 + 1 + 1 + 1 + 2)
    assert found["same"].bits == found["same"].name_bits <= 8 * 9
    assert {name: size.kind for name, size in found.items() if size.kind != "values"} == {
        "conv.weight": "codebook", "fc.weight": "codebook", "shared": "shared codebook",
        "copy": "codebook", "same": "copy", "w": "codebook",
    }  # fmt: skip


def test_what_the_contexts_save_is_said_and_a_shuffle_saves_nothing():
    w = striped(70, 40)
    order = torch.randperm(w.numel(), generator=torch.Generator().manual_seed(0))
    striped_row, shuffled_row = (
        tables_of(encode({"w": each}))[0][0] for each in (w, w.flatten()[order].reshape(w.shape))
    )
    assert "contexts by" in striped_row[1] and float(striped_row[7].rstrip(" %")) > 20.0
    assert "contexts" not in shuffled_row[1] and float(shuffled_row[7].rstrip(" %")) < 1.0
    assert striped_row[6] == shuffled_row[6]  # the same zero-order entropy


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_number_is_cut_and_no_name_reaches_the_terminal_as_it_is(width):
    data = file_of("every kind")
    out = io.StringIO()
    Console(file=out, width=width).print(byte_tables(sizes(data), len(data), width=width))
    shown = out.getvalue()
    for row in tables_of(data)[0]:
        assert f" {row[4]} " in shown.replace("\n", " \n")
    assert "\x1b" not in shown and "\u202e" not in shown
    assert "[red]" in shown or width < 200


@pytest.mark.parametrize("width", [40, 60, 80])
def test_in_a_narrow_terminal_each_tensor_has_one_line_of_numbers_and_one_of_words(width):
    data = file_of("every kind")
    out = io.StringIO()
    Console(file=out, width=width).print(byte_tables(sizes(data), len(data), width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    begin = next(i for i, line in enumerate(lines) if line.startswith("conv.weight"))
    assert {"288", "16"} <= {*lines[begin].split()}
    assert lines[begin + 1].strip().startswith("codebook: ")
    assert ("too narrow here for" in out.getvalue()) == (width < 60)


def test_what_nearly_nothing_saves_has_no_sign():
    data = encode({"w": snapped((400, 400), 8)})
    (size,) = sizes(data).values()
    assert -5e-4 < 1 - size.index_bits / size.entropy_bits < 0
    assert byte_tables(sizes(data), len(data)).renderables[0].columns[7]._cells[0] == "0.0 %"


@given(st.lists(st.lists(st.floats(0.0, 1e6), max_size=4), max_size=20))
def test_whole_bytes_are_right_to_the_nearest_byte_up_to_any_row(parts):
    found = whole_bytes(parts)
    bits = [b for row in parts for b in row]
    assert len(found) == len(bits) and all(size >= 0 for size in found)
    for n in range(len(bits) + 1):
        assert abs(sum(found[:n]) - sum(bits[:n]) / 8) <= 0.5 + 1e-6


@EVERY
def test_counting_changes_no_bit_that_is_read(name):
    data = file_of(name)
    parts, _ = read_parts(data, stream_decoder=StreamMeter)
    decoded = codec.decode(data)
    assert [part.name for part in parts] == list(decoded)
    assert all(torch.equal(part.tensor, decoded[part.name]) for part in parts)
