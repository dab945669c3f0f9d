"""`swsmix train` with ten seeds: how far the results depend on the start.

    python figures/sunspots_seeds.py           (about ten minutes on one core)

It runs the command as anyone would, once per seed, and writes `figures/sunspots-seeds.json`: one
row per seed, with the mean and the standard deviation over the rows. `--table` prints that file.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

OUT = Path(__file__).parent / "sunspots-seeds.json"
ROWS = {"soft weight-sharing": "arv", "the same, snapped to its centres": "arv_snapped"}
COMMAND = "swsmix train --seed SEED --out FOLDER"


def run(seed):
    """One run of the command, as one row."""
    began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "swsmix", "train", "--seed", str(seed), "--out", str(out)]
        subprocess.run([*command, "--quiet"], check=True)
        results = json.loads((out / "results.json").read_text())
    row = {"seed": seed}
    for name, measures in results["rows"].items():
        key = ROWS.get(name, "arv_weight_decay")
        row |= {f"{key}_{part}": round(measures[part], 5) for part in ("validation", "test")}
    facts = results["facts"]
    # "bits a weight" is how older versions named it.
    row["bits_per_weight"] = next(
        round(value, 4) for name, value in facts.items()
        if name.startswith("bits") and name.endswith("end")
    )  # fmt: skip
    row["values"] = int(facts["distinct values after snapping, end"])
    seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - began
    row["cpu_minutes"] = round(seconds / 60, 2)
    return row


def processor():
    """What the results are bit-equal on: the kind of processor and torch's instruction set."""
    import torch

    names = [platform.processor() or platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names += [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
    return f"{names[-1]}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def summary(rows):
    """Mean and standard deviation over the seeds of each number."""
    names = [name for name in rows[0] if name not in ("seed", "cpu_minutes")]
    columns = {name: [row[name] for row in rows] for name in names}
    return {n: {"mean": round(mean(v), 4), "sd": round(stdev(v), 4)} for n, v in columns.items()}


def table(results):
    """The file as a Markdown table."""
    names = list(results["summary"])
    lines = ["| seed | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for row in results["rows"]:
        lines.append(f"| {row['seed']} | " + " | ".join(f"{row[n]:.4g}" for n in names) + " |")
    cells = [f"{x['mean']:.4g} ± {x['sd']:.2g}" for x in results["summary"].values()]
    return "\n".join([*lines, "| mean ± sd | " + " | ".join(cells) + " |"])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if not options.table:
        rows = []
        for seed in range(options.seeds):
            rows.append(run(seed))
            print(json.dumps(rows[-1]), flush=True)
        results = {
            "command": COMMAND,
            "processor": processor(),
            "rows": rows,
            "summary": summary(rows),
        }
        text = json.dumps(results, indent=1)
        # One row per line.
        for row in rows:
            text = text.replace(json.dumps(row, indent=1).replace("\n", "\n  "), json.dumps(row))
        options.out.write_text(text + "\n")
    print(table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
