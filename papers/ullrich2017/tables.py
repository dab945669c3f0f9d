"""The tables: published against ours, one for each network."""

from __future__ import annotations

import math
import statistics
import tomllib
from pathlib import Path

from papers.ullrich2017.kept import Results

HERE = Path(__file__).resolve().parent
NETS = {"lenet-300-100": "LeNet-300-100", "lenet-5-caffe": "LeNet-5-Caffe"}
UNITS = {
    "format": "Han's format",
    "parameters": "number of parameters",
    "bits": "estimated bits",
    "bytes": "bytes of a file",
}


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation over the seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(results: Results, net: str) -> list[str]:
    """Published against ours for one network."""
    published = tomllib.loads((HERE / "published.toml").read_text())
    lines = [
        f"## {NETS[net]}",
        "",
        f"{published['float32_bytes'][net]:,} bytes in float32. Ours: mean ± standard deviation "
        "over the seeds; bytes of the whole file, header, codebooks and biases included.",
        "",
        "| method | augmentation | dense error % | error % | non-zero % | bytes | compression | "
        "its unit | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in published["rows"]:
        if row["net"] == net:
            cited = ", as cited" if row["certainty"] == "recalled" else ""
            size = f"{row['size_bytes']:,}" if "size_bytes" in row else ""
            lines.append(
                f"| {row['method']}{cited} | | {row.get('error_before', '')} | {row['error']} | "
                f"{row.get('nonzero_percent', '')} | {size} | {row['ratio']}x | "
                f"{UNITS[row['unit']]} | |"
            )
    for setting, rows in results.rows().items():
        if rows[0]["net"] != net:
            continue
        how = f"shifts of ±{rows[0]['shift']} pixel" if rows[0]["shift"] else "none"
        how += f", input dropout {rows[0]['dropout']:g}" if rows[0]["dropout"] else ""
        biases = f", biases of {rows[0]['bias_bits']} bits" if rows[0]["bias_bits"] else ""
        biases = ", biases shared too" if rows[0]["biases_under_prior"] else biases
        column = {
            key: [r[key] for r in rows] for key in rows[0] if not isinstance(rows[0][key], dict)
        }
        pruned = [100 / v if v else math.inf for v in column["nonzero_percent"]]
        common = (
            f"{spread(column['dense_test_error_percent'], 2)} | "
            f"{spread(column['compressed_test_error_percent'], 2)} | "
            f"{spread(column['nonzero_percent'], 2)} | "
        )
        lines += [
            f"| **ours**, {setting}{biases} | {how} | {common}{spread(column['size_bytes'], 0)} | "
            f"**{spread(column['ratio'], 0)}x** | bytes of a file | {len(rows)} |",
            f"| the same | {how} | {common} | {spread(column['han_ratio'], 0)}x | Han's format | "
            f"{len(rows)} |",
            f"| the same | {how} | {common} | "
            f"{spread(pruned, 0)}x | non-zero ratio | "
            f"{len(rows)} |",
        ]
    return [*lines, ""]


CIFAR = {
    "resnet-20": ("ResNet-20", "not run yet"),
    "wrn-16-4": ("WRN-16-4", "not run: about 16 minutes an epoch on two cores, 40 epochs and more"),
}
"""Network -> its name, and what its row says without a result."""


def cifar_table(results: Results) -> list[str]:
    """The networks on CIFAR-10, and the published row."""
    published = tomllib.loads((HERE / "published.toml").read_text())
    lines = [
        "## CIFAR-10",
        "",
        "One seed. Bytes of the whole file against four bytes for each number of the network with "
        "folded batch norms; images are moved by up to four pixels and mirrored.",
        "",
        "| network | method | dense error % | error % | points, of those allowed on validation | "
        "non-zero % | bytes | compression | its unit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for net, (name, without) in CIFAR.items():
        lines += [
            f"| {name} | {row['method']}, as cited | | {row['error']:.2f} | | | | "
            f"{row['ratio']}x | {UNITS[row['unit']]} |"
            for row in published["rows"]
            if row["net"] == net
        ]
        found = [r for r in results.cifar if r["net"] == net]
        for r in found:
            points = r["compressed_validation_error_percent"] - r["dense_validation_error_percent"]
            missed = "" if r["met"] else ", missed"
            lines.append(
                f"| {name} | **ours** | {r['dense_test_error_percent']:.2f} | "
                f"{r['compressed_test_error_percent']:.2f} | {points:.2f} of "
                f"{r['allowed_points']:g}{missed} | {r['nonzero_percent']:.1f} | "
                f"{r['size_bytes']:,} | **{r['ratio']:.0f}x** | bytes of a file |"
            )
        if not found:
            lines.append(f"| {name} | **ours**: {without} | | | | | | | |")
    return [*lines, ""]
