"""Damaged files of every kind that we read, with mended checksums and lengths.

Each is read by its public doors in a process with little memory and time (`damaged_reads`). It must
be read, or refused by a ValueError or OSError that names the file. A value that is read must be
what the file now holds, by a second reader; whether it is the original cannot be asked, since the
checksums are mended.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.hunt,
    pytest.mark.skipif(sys.platform != "linux", reason="memory limits as on Linux"),
]
FILES, SAMPLE = 60_000, 240
PROGRAM = Path(__file__).parent.parent / "damaged_reads.py"


def read_all(seeds, first, last, seconds):
    """(number, kind, outcome, detail, seconds) of each file, until so long after the first one.

    After a file that ends its process, the next process goes on.
    """
    end = math.inf
    environment = os.environ | {"TMPDIR": str(seeds.parent), "OMP_NUM_THREADS": "1"}
    while first < last and time.monotonic() < end:
        started = None
        with tempfile.TemporaryFile("w+") as said:  # a pipe could fill
            process = subprocess.Popen(
                [sys.executable, PROGRAM, seeds, str(first), str(last)], text=True,
                env=environment, stdout=subprocess.PIPE, stderr=said,
            )  # fmt: skip
            for line in process.stdout:
                if line.startswith(">"):
                    started = line.split()[1:]
                    continue
                end = min(end, time.monotonic() + seconds)
                started, done = None, json.loads(line)
                first = done[0] + 1
                yield done
                if time.monotonic() > end:
                    process.kill()
                    break
            process.communicate()
            said.seek(0)
            trace = said.read()
        if started is None:
            assert first >= last or time.monotonic() > end, trace[-2000:]
            continue
        what = "hang" if "Timeout" in trace else "crash"
        yield [int(started[0]), started[1], what, trace[-500:], 0.0]
        first = int(started[0]) + 1


def test_a_damaged_file_is_read_as_it_is_or_refused_by_a_sentence(full, tmp_path):
    seeds = tmp_path / "whole"
    count, seconds = (FILES, 6 * 3600) if full else (SAMPLE, 15)
    outcomes, faults, slowest = Counter(), [], 0.0
    for number, kind, outcome, detail, taken in read_all(seeds, 0, count, seconds):
        outcomes[kind, outcome] += 1
        slowest = max(slowest, taken)
        if outcome in ("crash", "hang", "wrong", "unclear"):
            faults.append(f"{number} {kind} {outcome} {detail}")
    print(f"\n{sum(outcomes.values()):,} files, the slowest {slowest:.1f} s")
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:12} {outcome:8} {number:7,}")
    assert not faults, "\n".join(faults[:40])
    assert outcomes.total() == count if full else outcomes.total() >= 12
    for kind in {kind for kind, _ in outcomes} if full else ():  # neither all refused nor all read
        assert outcomes[kind, "error"] and outcomes[kind, "read"]
