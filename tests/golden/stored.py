"""The golden files as JSON: one entry a line, numbers of ten digits."""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def write(name, values):
    """JSON, one entry a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(name):
    return json.loads((HERE / f"{name}.json").read_text())


def rounded(values):
    """Plain numbers of ten digits."""
    return [float(f"{v:.10g}") for v in np.ravel(np.asarray(values, dtype=float)).tolist()]
