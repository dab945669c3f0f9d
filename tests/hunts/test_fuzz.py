"""Damaged files of every kind that we read, with mended checksums and lengths.

Each is read by its public doors in a process with little memory and time (`damaged_reads`). It must
be read, or refused by a ValueError or OSError that names the file. A value that is read must be
what the file now holds, by a second reader; whether it is the original cannot be asked, since the
checksums are mended.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.hunt,
    pytest.mark.skipif(sys.platform != "linux", reason="memory limits as on Linux"),
]
FILES, SAMPLE = 60_000, 300
PROGRAM = Path(__file__).parent.parent / "damaged_reads.py"


def read_all(seeds, first, last, seconds):
    """(number, kind, outcome, detail, seconds) of each file, until the time is over.

    After a file that ends its process, the next process goes on.
    """
    end = time.monotonic() + seconds
    environment = os.environ | {"TMPDIR": str(seeds.parent), "OMP_NUM_THREADS": "1"}
    while first < last and time.monotonic() < end:
        process = subprocess.Popen(
            [sys.executable, PROGRAM, seeds, str(first), str(last)], text=True, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started = None
        for line in process.stdout:
            if line.startswith(">"):
                started = line.split()[1:]
                continue
            started, done = None, json.loads(line)
            first = done[0] + 1
            yield done
            if time.monotonic() > end:
                process.kill()
                break
        said = process.communicate()[1]
        if started is None:
            assert first >= last or time.monotonic() > end, said[-2000:]
            continue
        what = "hang" if "Timeout" in said else "crash"
        yield [int(started[0]), started[1], what, said[-500:], 0.0]
        first = int(started[0]) + 1


def test_a_damaged_file_is_read_as_it_is_or_refused_by_a_sentence(full, tmp_path):
    seeds = tmp_path / "whole"
    subprocess.run([sys.executable, PROGRAM, "make", seeds], check=True, capture_output=True)
    count, seconds = (FILES, 6 * 3600) if full else (SAMPLE, 25)
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
    for kind in {kind for kind, _ in outcomes}:  # neither all refused nor all read
        assert outcomes[kind, "error"] and (outcomes[kind, "read"] or not full)
    assert not full or sum(outcomes.values()) == count
