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
from torch import nn

MEMORY = 1 << 30  # bytes beyond what the process has at the start
SECONDS = 30
# The kinds in their shares.
KINDS = (
    "compressed", "run", "compressed", "safetensors", "torch", "compressed", "training", "index",
    "compressed", "history", "posterior", "torch",
)  # fmt: skip


class WrongError(Exception):
    """A value that the file does not hold."""


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def train(folder, *, epochs, resume=False):
    from swsmix import MixturePrior, fit

    net = network()
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    prior = MixturePrior(net, 3, exclude="0.bias")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    fit(
        net, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer, epochs=epochs, prior=prior,
        run=folder, resume=resume, validation=(x, y), patience=4, progress=False,
    )  # fmt: skip
    return net


# -- the whole files ----------------------------------------------------------------------------


def make(seeds):
    """Write the whole files, each kind in a folder of its own."""
    from safetensors.torch import save_file

    from swsmix.bayes import fit_guide
    from swsmix.codec import encode

    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(24, 1, generator=generator) ** 6
    w = torch.randint(1, 4, (24, 36), generator=generator).float()
    w *= torch.rand(24, 36, generator=generator) < dense
    flat = w.reshape(-1).sort().values
    images = w.reshape(8, 12, 3, 3).contiguous()
    born = (torch.arange(40)[:, None] >= 2 * torch.arange(20)).float().T.contiguous()
    born *= torch.rand(born.shape, generator=generator) < 0.6
    born = born[born.ne(0).int().argmax(1).argsort(stable=True)]
    bias = torch.arange(9).float() / 8
    states = [
        {"a.weight": w, "a.bias": bias, "b.weight": w.clone(), "n": torch.tensor(3)},
        {"w": flat, "half": flat.half()[:50]}, {"w": images, "shared": w * 1}, {"w": born},
        {"w": torch.randn(8, 8, generator=generator), "m": torch.tensor([True, False] * 40)},
        {"one": torch.zeros(1000, 1000), "empty": torch.zeros(0, 5), "s": torch.tensor(1.5)},
    ]  # fmt: skip
    (seeds / "compressed").mkdir(parents=True)
    for i, state in enumerate(states):
        (seeds / "compressed" / f"{i}.sws").write_bytes(encode(state))
    (seeds / "torch").mkdir()
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(2, 4)).sum().backward()
    optimizer.step()
    trainer = {
        "state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3,
        "ema": {n: t * 0.9 for n, t in net.state_dict().items()}, "args": {"lr": 0.1, "name": "x"},
    }  # fmt: skip
    torch.save(trainer, seeds / "torch" / "trainer.pt")
    torch.save(net.state_dict(), seeds / "torch" / "state.pt")
    torch.save(trainer, seeds / "torch" / "old.pt", _use_new_zipfile_serialization=False)
    (seeds / "index").mkdir()
    names = list(net.state_dict())
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, own in zip(files, (names[:2], names[2:]), strict=True):
        save_file({n: net.state_dict()[n] for n in own}, seeds / "index" / file)
    places = dict(zip(names, [files[0]] * 2 + [files[1]] * 2, strict=True))
    index = {"metadata": {"total_size": 176}, "weight_map": places}
    (seeds / "index" / "model.safetensors.index.json").write_text(json.dumps(index))
    (seeds / "safetensors").mkdir()
    halves = {n: t.bfloat16() for n, t in net.state_dict().items()} | {"count": torch.arange(5)}
    save_file(halves, seeds / "safetensors" / "model.safetensors", {"format": "pt"})
    train(seeds / "run", epochs=2)
    shutil.rmtree(seeds / "run" / "final")
    (seeds / "run" / "config.toml").write_text('seed = 1\nname = "x"\n[more]\na = [1, 2]\n')
    import joints

    (seeds / "posterior").mkdir()
    *_, joint = joints.small()
    drawn = fit_guide(joint, epochs=20, batch_size=12, draws=20, seed=0, progress=False)
    drawn.save(seeds / "posterior" / "posterior.safetensors")


# -- a damaged file, and its doors --------------------------------------------------------------


def damaged(kind, seeds, folder, rng):
    """Put the files of a kind into a folder, one of them damaged; returns what is to be read."""
    source = seeds / {"training": "run", "history": "run"}.get(kind, kind)
    if kind == "compressed" or kind == "torch":
        files = sorted(source.iterdir())
        file = damage.choose(rng, files)
        data, target = file.read_bytes(), folder / file.name
        if kind == "compressed":
            bad = damage.compressed(data, rng, damage.choose(rng, files).read_bytes())
        elif file.name == "old.pt":
            bad = damage.bytes_(data, rng)
        elif rng.integers(2):
            bad = damage.archive(data, rng, (source / "trainer.pt").read_bytes())
        else:
            bad = damage.torch_values(torch.load(file, weights_only=True), rng)
        target.write_bytes(bad)
        return target
    for file in source.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        else:
            shutil.copy(file, folder / file.name)
    if kind in ("run", "training", "history"):
        checkpoint = next(folder.glob("checkpoint-*"))
        part = {"training": "training.pt", "history": "history.safetensors"}.get(kind)
        others = ("network.safetensors", "prior.safetensors", "../config.toml", "training.pt")
        target = checkpoint / (part or damage.choose(rng, others))
    else:
        target = damage.choose(rng, sorted(folder.iterdir()))
    data = target.read_bytes()
    if target.suffix == ".safetensors":
        bad = damage.safetensors(data, rng)
    elif target.suffix == ".json":
        bad = damage.json_(data, rng)
    elif target.suffix == ".toml":
        bad = damage.bytes_(data, rng)
    elif rng.integers(4) == 0:
        bad = damage.archive(data, rng, data)
    else:
        bad = damage.torch_values(torch.load(target, weights_only=True), rng)
    target.write_bytes(bad)
    return folder if kind != "posterior" else target


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
