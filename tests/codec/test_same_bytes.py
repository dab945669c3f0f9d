"""The bytes of a file stay the same, on any machine and in any later version."""

import base64
import hashlib
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sparse_weights import hashed, structured

from swsmix.codec import decode, encode, mixing
from swsmix.codec.contexts import SIDES, Scan, code_in_context
from swsmix.codec.stream import ONE, StreamDecoder, StreamEncoder
from swsmix.tables.backends import uncompiled


def test_the_tables_of_logits_are_far_from_every_rounding_boundary():
    # So that no other implementation of log and exp can round an entry differently.
    p = np.arange(1, ONE)
    logit = np.arange(-2840, 2841) / mixing.LOGIT_SCALE
    for exact, table in (
        (mixing.LOGIT_SCALE * np.log(p / (ONE - p)), mixing.LOGIT[1:-1]),
        (ONE / (1.0 + np.exp(-logit)), mixing.PROBABILITY),
    ):
        assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-9
        assert np.abs(exact - table).max() <= 0.51


# Written by the first version 2: files stay readable, whatever changes.
GOLDEN = """
U1dTTQIxAwIZAQEAAhgkBgEAuAC0AIAAAAA0ADgCAwEBAhkCAAABGAoLAQAFc3RlcHMABAAHDNs+SdKoQTc1EfOLOrH3y/Xn
Zsfzb5be0npmsT5Kms+/pjEK46rZ38pe+8TCH6j4ZCGFZUo0kGRRviapRjkL+Qtt/eES11r/tq4ZcGiUIuWSSzwixxfyzMR6
VcGPQTG3Bbh0fCsUhxqXUDYJsQD2KQcJ6aMd
"""


def golden_state():
    i = torch.arange(24)[:, None] * 1.0
    j = torch.arange(36)[None] * 1.0
    w = ((i * j) % 7 == 3) * ((i + 2 * j) % 5 - 2) / 4 * (i > 5)
    return {"fc.weight": w, "fc.bias": (i[:, 0] - 7) / 64, "steps": torch.tensor(12)}


def test_a_file_of_the_first_version_is_read_and_written_as_ever():
    data = base64.b64decode(GOLDEN)
    state = golden_state()
    back = decode(data)
    assert list(back) == list(state) and all(torch.equal(back[n], t) for n, t in state.items())
    assert encode(state) == data


def scanned(steps, lanes, num_values, common, stride, side="", in_order=False):
    """A scan and numbers for it: dense and dead steps and lanes, and values that recur."""
    rate = np.outer(hashed(steps, salt=1) ** 2, hashed(lanes, salt=2) ** 2)
    rows = np.floor(num_values * hashed(steps, lanes, salt=3) ** 2).astype(np.int64)
    rows[hashed(steps, lanes, salt=4) > 2 * rate] = common
    again = hashed(steps, lanes, salt=5) < 0.5
    for step in range(stride, steps):
        rows[step] = np.where(again[step], rows[step - stride], rows[step])
    if in_order:
        flags = rows != common
        first = np.where(flags.any(0), flags.argmax(0), steps)
        rows = rows[:, first.argsort(kind="stable")]
    known = {"step": steps, "lane": lanes}
    sides = [
        np.floor(SIDES * hashed(size, salt=6)).astype(np.int64)
        if side == which
        else np.zeros(0, np.int64)
        for which, size in known.items()
    ]
    if not side:
        sides[1] = np.zeros(lanes, np.int64)
    return Scan(steps, lanes, num_values, common, stride, *sides, in_order), rows


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("digest", "how"),
    [
        ("f59975b9f13bb06a", (60, 64, 5, 0, 1)),
        ("6797ac8f2f5c92db", (60, 65, 40, 17, 12, "step")),
        ("107a33a63b28edff", (70, 30, 300, 299, 28, "lane")),
        ("0d87e7d51014a02b", (50, 70, 9, 4, 3, "step", True)),
        ("0daa65847fe42dc0", (20, 300, 9, 0, 1)),
        ("b8224ac04a5e9001", (50, 20, 2, 1, 1, "", True)),
    ],
)
def test_the_contexts_stay_so_that_files_stay_readable(digest, how, compiled):
    # By digests: any other context, weight or rounding reads a file of before as other numbers.
    scan, rows = scanned(*how)
    stream = StreamEncoder()
    with nullcontext() if compiled else uncompiled():
        code_in_context(stream, scan, rows)
        data = stream.to_bytes()
        assert np.array_equal(code_in_context(StreamDecoder(data), scan, None), rows)
    assert hashlib.sha256(data).hexdigest()[:16] == digest


@pytest.mark.parametrize("lanes", [600, 2000, 6000])
@pytest.mark.parametrize("num_values", [3, 30])
def test_long_batches_are_coded_alike_compiled_and_not(lanes, num_values):
    # In one step a context is seen many times more than its counts may hold.
    scan, rows = scanned(20, lanes, num_values, 0, 1)
    streams = []
    for context in (nullcontext(), uncompiled()):
        streams.append(StreamEncoder())
        with context:
            code_in_context(streams[-1], scan, rows)
    assert streams[0].to_bytes() == streams[1].to_bytes()


def test_the_bytes_do_not_depend_on_the_number_of_threads():
    code = (
        "import sys, hashlib; sys.path[:0] = sys.argv[1:]; import torch;"
        "from sparse_weights import hashed, structured; from swsmix.codec import decode, encode;"
        "w = structured(200, 40); data = encode({'w': w});"
        "assert torch.equal(decode(data)['w'], w);"
        "print(hashlib.sha256(data).hexdigest())"
    )
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(os.path.dirname(__file__))],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data = encode({"w": structured(200, 40)})
    torch.set_num_threads(before)
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest()
