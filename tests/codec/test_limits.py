"""Hostile files cost little; what a file may cost is tied to its size."""

import json
import subprocess
import sys
import warnings
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from swsmix.codec import contents, decode, encode, encoder, sizes
from swsmix.codec.budget import ContextBudget, limits, max_weights_for
from swsmix.codec.header import TableReader, TableWriter, to_patterns
from swsmix.codec.stream import StreamDecoder, StreamEncoder, code_adaptively
from swsmix.codec.values import StoredValues, write_values
from swsmix.compression.snap import snap_to_grid

FLOAT32, FLOAT64, COPY, INDEX, SHARED, GRID = 0, 3, 3, 1, 2, 10


def hostile(*tensors, stream=b"\0" * 12):
    """A file with a good checksum; a tensor is its name and the numbers of its table."""
    front, body = TableWriter(), TableWriter()
    body.number(len(tensors))
    for i, numbers in enumerate(tensors):
        body.name(f"t{i}")
        for number in numbers:
            if isinstance(number, bytes):
                body.data += number
            else:
                body.number(number)
    front.number(len(body.data))
    data = b"SWSM\2" + bytes(front.data + body.data) + stream
    return data + zlib.crc32(data).to_bytes(4, "little")


def equal_values(count, dtype=FLOAT64):
    return (INDEX, dtype, 1, count, 1, dtype, bytes(8 if dtype == FLOAT64 else 4))


def book(num_values, shape, *model):
    return (INDEX, FLOAT32, len(shape), *shape, num_values, GRID, 0, *model)


def in_context(num_values, shape, kind, stride=1):
    return book(num_values, shape, 2, 0, kind, stride)


HOSTILE = {
    "many equal values": [equal_values(1 << 28)],
    "many copies": [equal_values(1 << 24), *[(COPY, 0)] * 15],
    "contexts by rows": [in_context(1024, (5000, 5000), 1)],
    "contexts by columns": [in_context(2, (4096, 8192), 0)],
    "contexts in order": [in_context(2, (1 << 17, 256), 4)],
    "a stride of 1024": [in_context(1024, (1024, 32768), 1, 1024)],
    "adaptive, large": [book(65536, (1 << 28,), 1)],
    "counted, large": [book(2, (1 << 28,), 0)],
    "values on a grid": [(0, FLOAT64, 1, 1 << 22, GRID, 0)] * 8,
    "many tables": [book(65536, (65536,), 1)] + [(SHARED, FLOAT32, 1, 1, 0, 1)] * 3000,
    "a shape of 2^61": [(0, FLOAT64, 1, 1 << 61, FLOAT64)],
    "small contexts": [in_context(1024, (1, 1024), 1)]
    + [(SHARED, FLOAT32, 1, 2, 0, 2, 0, 3, 1)] * 500,
}


def long_numbers():
    """The stream of 2^22 numbers of 40 bits, but for the bits: reading goes on after its end."""
    stream = StreamEncoder()
    code_adaptively(stream, 41, 1, np.array([40]))
    code_adaptively(stream, 41, 1 << 22, np.full(1 << 22, 40))
    return stream.to_bytes()


def hostile_file(name):
    stream = {"stream": long_numbers()} if name == "values on a grid" else {}
    return hostile(*HOSTILE[name], **stream)


# Reads every file in one process; says its name before, and afterwards the error and the seconds.
READ = """
import json, resource, sys, time
import torch
from swsmix.codec import decode
from swsmix.codec.stream import _constriction
_constriction()
virtual = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + (2 << 30),) * 2)
for name, data, max_weights in json.load(sys.stdin):
    print(json.dumps(name), flush=True)
    begin, error = time.process_time(), None
    try:
        decode(bytes.fromhex(data), max_weights=max_weights)
    except ValueError as refusal:
        error = str(refusal)
    print(json.dumps([error, time.process_time() - begin]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits as on Linux")
def test_a_hostile_file_takes_neither_minutes_nor_gigabytes():
    files = {name: hostile_file(name) for name in HOSTILE}
    assert all(len(data) < 100_000 for data in files.values())
    cases = [(name, data.hex(), None) for name, data in files.items()]
    # Asked to, a tiny file may take longer in proportion, and no more.
    asked = {"values on a grid": 1 << 22, "contexts by rows": 5000 * 5000}
    cases += [(f"{name}, {n} allowed", files[name].hex(), n) for name, n in asked.items()]
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps(cases), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (said[-1], done.stderr)
    seconds = {name: taken for name, (_, taken) in zip(said[::2], said[1::2], strict=True)}
    assert len(seconds) == len(cases)
    slow = {n: t for n, t in seconds.items() if t > 20}
    assert not slow


@pytest.mark.parametrize(
    "name", ["many equal values", "many copies", "contexts by columns", "values on a grid"]
)
def test_what_is_refused_names_the_limit_and_the_remedy(name):
    data = hostile_file(name)
    said = _refusal(data)
    limit = limits(len(data))["steps" in said]
    assert f"{limit:,}" in said and f"{len(data):,} bytes" in said
    assert "give a larger max_weights" in said


def _refusal(data, max_weights=None):
    with pytest.raises(ValueError) as refused:
        decode(data, max_weights=max_weights)
    return str(refused.value)


def test_max_weights_allows_steps_in_proportion():
    data = hostile_file("small contexts")
    small, large = (limits(len(data), n)[1] for n in (1 << 10, 1 << 30))
    assert 0 < large - small <= 8 << 30 and small - limits(len(data))[1] <= 8 << 10
    said = _refusal(hostile_file("contexts by rows"), 5000 * 5000)
    assert "steps" in said and "max_weights = 25,000,000" in said


def test_a_file_that_takes_many_steps_is_read_with_the_max_weights_that_its_writer_names():
    steps = limits(100)[1] + 1
    assert max_weights_for(100, 10, steps - 1) is None
    for numbers, excess in ((10, 1), (10, 1 << 24), (1 << 25, 1)):
        needed = max_weights_for(100, numbers, steps + excess)
        allowed = limits(100, needed)
        assert allowed[0] >= numbers and allowed[1] >= steps + excess
        assert needed == numbers or limits(100, needed - 1)[1] < steps + excess


def test_every_place_of_a_number_on_a_grid_counts():
    """A file that fits to the step is read; with one step less it is not."""
    numbers = torch.arange(1000, dtype=torch.float64) * 3.0**9
    table, stream = TableWriter(), StreamEncoder()
    patterns = to_patterns(numbers)
    steps = write_values(table, stream, patterns, torch.float64)
    integers = numbers.long()  # odd ones among them: the grid's step is 1
    places = sum(max((2 * n).bit_length() - 1, 0) for n in integers.tolist())
    assert steps == places
    for left in (steps, steps - 1):
        budget = ContextBudget(0, left)
        reader = TableReader(bytes(table.data))
        with pytest.raises(ValueError, match="steps") if left < steps else nullcontext():
            stored = StoredValues.from_table(reader, 1000, torch.float64)
            back = stored.patterns(StreamDecoder(stream.to_bytes()), budget.read_)
            assert (back == patterns).all()


def test_the_writer_counts_at_least_the_steps_that_the_reader_takes(monkeypatch):
    budgets = {encoder: [], contents: []}
    for module, made in budgets.items():

        def counted(*arguments, made=made):
            made.append(ContextBudget(*arguments))
            return made[-1]

        monkeypatch.setattr(module, "ContextBudget", counted)
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-9000, 9000, (40, 50), generator=generator)
    noise = torch.randn(300, generator=generator)
    flags = (torch.rand(40, 50, generator=generator) < 0.05).float()
    for t in (steps / 64, noise, noise[:9].repeat(30), flags, flags.bool(), steps):
        decode(encode({"t": t}))
        written, read = (made[-1].read for made in budgets.values())
        assert 0 < read <= written < 2 * read + 100


@pytest.mark.parametrize("numbers", [(COPY, 0), (COPY, 7), (SHARED, FLOAT32, 1, 9, 0)])
def test_what_refers_to_something_that_is_not_there_is_refused(numbers):
    with pytest.raises(ValueError, match="that is not there"):
        decode(hostile(numbers))


def test_a_list_on_a_grid_is_refused_beyond_its_longest():
    size = (1 << 22) + 1
    with pytest.raises(ValueError, match="too long"):
        StoredValues.from_table(TableReader(bytes([GRID, 0])), size, torch.float32)


def test_a_large_tensor_of_equal_values_is_read_by_default():
    data = encode({"w": torch.zeros(5000, 5000)})
    assert len(data) < 64 and decode(data)["w"].shape == (5000, 5000)
    assert decode(encode({"w": torch.zeros(1000, 1000)}))["w"].shape == (1000, 1000)


def test_what_is_refused_by_default_is_written_with_a_warning_and_read_when_asked():
    few = limits(40)[0] + 1
    with pytest.warns(UserWarning, match=rf"max_weights = {few} or more"):
        data = encode({"w": torch.zeros(few, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="give a larger max_weights"):
        decode(data)
    with pytest.raises(ValueError, match="give a larger max_weights"):
        sizes(data)
    assert decode(data, max_weights=few)["w"].shape == (few,)


def test_an_ordinary_file_is_far_below_the_limits():
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(300, 784, generator=generator) < 0.01).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = encode({"a": weights, "b": weights[:, :400] * 2})
    assert torch.equal(decode(data)["a"], weights)


def test_a_number_in_more_bytes_than_it_needs_is_refused():
    assert TableReader(b"\x85\x01").number() == 133 and TableReader(b"\0").number() == 0
    for long in (b"\x85\x00", b"\x80\x00", b"\x85\x81\x00"):
        with pytest.raises(ValueError, match="longer than it needs"):
            TableReader(long).number()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_a_grid_holds_the_largest_and_the_smallest_numbers(dtype, bits):
    ends = torch.finfo(dtype)
    for largest in (ends.max, ends.max / 2, ends.tiny, ends.smallest_normal / 4, 1.0):
        t = (torch.linspace(-1, 1, 101, dtype=torch.float64) * largest).to(dtype)
        grid = snap_to_grid(t, bits)
        assert grid.isfinite().all() and len(grid.unique()) < 2**bits
        assert torch.equal(snap_to_grid(grid, bits), grid)
        error = (grid.double() / 2 - t.double() / 2).abs().max() / (t.abs().max().double() / 2)
        near_the_top = largest == ends.max
        assert error <= (2 if near_the_top else 1) / (2 ** (bits - 1) - 1)
