"""Reads damaged files through every public door, many in one process, and says what came of each.

    python tests/damaged_reads.py WHOLE FIRST LAST

writes the whole files into the folder WHOLE, unless it is there, and reads damaged ones of the
numbers from FIRST to below LAST.
Prints, for each file, a line before ("> NUMBER KIND") and after it ("NUMBER KIND OUTCOME DETAIL").
The file of a number is always the same.
"""

import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import damage
import numpy as np
import torch
from damaged_files import damaged, make, train

MEMORY = 1 << 30  # bytes beyond what the process has at the start
SECONDS = 30
# The kinds in their shares.
KINDS = (
    "compressed", "run", "compressed", "safetensors", "torch", "compressed", "training", "index",
    "compressed", "history", "posterior", "torch",
)  # fmt: skip


class WrongError(Exception):
    """A value that the file does not hold."""


def read(kind, path):
    """Read by every door that takes such a file, and check the values against the file itself."""
    from swsmix.inspection import checkpoints

    if kind == "compressed":
        return read_compressed(path)
    if kind == "posterior":
        return read_posterior(path)
    if kind in ("run", "training", "history"):
        return read_run(path)
    checkpoint = checkpoints.read(path)
    if kind == "torch":
        loaded = torch.load(
            path, weights_only=True, map_location="cpu"
        )  # whole: it checks the sizes of the records
        held = {damage.as_raw(t) for t in _tensors(loaded)}
        check(all(damage.as_raw(t) in held for t in checkpoint.tensors.values()), "tensors")
    else:
        files = sorted(path.glob("*.safetensors"))
        raw = {}
        for file in files:
            raw |= damage.raw_tensors(file.read_bytes())
        found = {n: damage.as_raw(t) for n, t in checkpoint.tensors.items()}
        check(all(raw[n] == value for n, value in found.items()), "values")
        lost = raw.keys() - found.keys()
        said = " ".join(checkpoint.left_out)
        if kind == "safetensors":
            check(all(n in said for n in lost) or "*" in said, f"not named: {lost}")
        else:
            promised = json.loads((path / "model.safetensors.index.json").read_bytes())
            wanted = promised["weight_map"].keys()
            check(all(n in wanted for n in found), "not promised")
            check(all(n in found or n in said or "*" in said for n in wanted), "promised")
    look(checkpoint)
    return tuple(damage.as_raw(t) for t in checkpoint.tensors.values())


def _tensors(value):
    if isinstance(value, torch.Tensor):
        if not value.is_meta and value.numel() < 1 << 20:
            yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def look(checkpoint):
    """What `swsmix inspect` prints."""
    from swsmix.inspection import terminal
    from swsmix.inspection.inspect import inspect

    terminal(
        inspect(checkpoint, num_components=None if checkpoint.mixtures else 2),
        width=100,
        ascii_only=True,
    )


def read_compressed(path):
    from swsmix.codec import decode, encode, load_compressed, sizes
    from swsmix.inspection import checkpoints

    state = load_compressed(path)
    raw = {n: damage.as_raw(t) for n, t in state.items()}
    small = sum(t.numel() for t in state.values()) < 1 << 16
    if small:
        again = decode(encode(state))
        check({n: damage.as_raw(t) for n, t in again.items()} == raw, "not itself when written")
        counted = {n: s.numel for n, s in sizes(path.read_bytes()).items()}
        check(counted == {n: t.numel() for n, t in state.items()}, "sizes")
        checkpoint = checkpoints.read(path)
        check({n: damage.as_raw(t) for n, t in checkpoint.tensors.items()} == raw, "inspect")
        look(checkpoint)
    return tuple(raw.items())


def read_posterior(path):
    from swsmix.bayes import Posterior
    from swsmix.cli.posterior import summarised

    posterior = Posterior.load(path)
    raw = damage.raw_tensors(path.read_bytes())
    check(damage.as_raw(posterior.z) == raw["z"], "z")
    for name in posterior.steps:
        check(raw.get(f"steps.{name}") == damage.as_raw(posterior.steps[name]), name)
    summarised(posterior)
    for group in posterior.layout.groups:
        posterior.mixture(group)
        posterior.weights(group)
    return tuple(raw.items())


def read_run(folder):
    from swsmix.inspection import checkpoints
    from swsmix.training.runs import load_run

    run = load_run(folder)
    for values, file in ((run.network, "network"), (run.prior, "prior")):
        raw = damage.raw_tensors((run.folder / f"{file}.safetensors").read_bytes())
        check({n: damage.as_raw(t) for n, t in values.items()} == raw, file)
    raw = damage.raw_tensors((run.folder / "history.safetensors").read_bytes())
    written = {n: damage.as_raw(t) for n, t in run.history.to_tensors().items()}
    same_values = all(
        raw.get(n, (None,))[1:] == value[1:] or n.startswith("scalars/")
        for n, value in written.items()
    )
    check(written.keys() == raw.keys() and same_values, "history")
    look(checkpoints.read(folder))
    net = train(folder, epochs=run.epoch + 1 if run.epoch < 5 else 5, resume=True)
    again = load_run(folder)
    state = {n: damage.as_raw(t) for n, t in net.state_dict().items()}
    check({n: damage.as_raw(t) for n, t in again.network.items()} == state, "resumed")
    return tuple(written.items()), tuple(raw.items())


def check(held, what):
    if not held:
        raise WrongError(what)


def outcome(kind, path):
    """What came of reading: "read", "error", "unclear", "wrong", or "crash", and details."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(kind, path)
    except WrongError as error:
        return "wrong", str(error)
    except (ValueError, OSError, FloatingPointError) as error:
        said = str(error)
        # Of the training itself: the file is not to blame.
        training = (
            "has diverged", "epochs already", "cannot be recorded", "the loss is", "training.pt"
        )  # fmt: skip
        named = any(part in said for part in (path.name, str(path), *training))
        return ("error" if said and named else "unclear"), _where(error)
    except Exception as error:
        return "crash", _where(error)
    return "read", ""


def _where(error):
    trace = error.__traceback__
    place = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "swsmix" in file and "tests" not in file:
            place = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} {place}: {str(error)[:300]!r}"


def one(seeds, number):
    """Make and read the damaged file of a number."""
    kind = KINDS[number % len(KINDS)]
    rng = np.random.default_rng([7, number])
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="damaged-") as folder:
        try:
            path = damaged(kind, seeds, Path(folder), rng)
        except (ValueError, OverflowError, RuntimeError, TypeError, RecursionError, KeyError) as e:
            return kind, "unmade", repr(e)[:150], 0.0
        made = time.monotonic()
        result = outcome(kind, path)
    return kind, *result, time.monotonic() - max(begin, made)


def main():
    seeds, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    if not seeds.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a guide without training
            make(seeds)
    import swsmix.bayes  # noqa: F401
    import swsmix.inspection  # noqa: F401
    from swsmix.codec.stream import _constriction

    _constriction()
    for kind in dict.fromkeys(KINDS):  # whole files, so that all is imported
        with tempfile.TemporaryDirectory(prefix="damaged-") as folder:
            shutil.copytree(seeds / {"training": "run", "history": "run"}.get(kind, kind), folder,
                            dirs_exist_ok=True)  # fmt: skip
            file = {"compressed": "0.sws", "torch": "trainer.pt",
                    "posterior": "posterior.safetensors"}.get(kind)  # fmt: skip
            read(kind, Path(folder) / file if file else Path(folder))
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY,) * 2)
    for number in range(first, last):
        print(f"> {number} {KINDS[number % len(KINDS)]}", flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        kind, result, detail, seconds = one(seeds, number)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([number, kind, result, detail, round(seconds, 2)]), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
