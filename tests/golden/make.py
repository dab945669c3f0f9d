"""Makes the golden files: what the code gives today, so that tomorrow's can be held to it.

    codec/    seven .sws files, each with the tensors in it: encoding gives these bytes, decoding
              these tensors; neither draws a number or fits anything
    runs/     two run folders, and in runs.json what they hold and what one epoch more gives
    keys      keys.json: names, dtypes and shapes in the state_dict of MixturePrior
    tables    tables.json: digests of the tables that the papers' results make
    drawings  drawings.json: the numbers that are drawn in the papers' figures and in swsmix.plots

The tests never run this. It is run on purpose, where a format or a result is to change, for the
parts that are named: python tests/golden/make.py codec runs keys tables drawings
"""

import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, and the checkout
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from golden.compressed_files import make_codec
from golden.drawings import drawings
from golden.run_folders import DOUBLE, make_runs, network
from golden.stored import HERE, write

from papers.nowlan1992 import figures as nowlan1992
from papers.ullrich2017 import figures as ullrich2017
from swsmix import MixturePrior

FIGURES = HERE.parents[1] / "figures"


def keys():
    """Each key of the prior's state_dict with its dtype and shape, for every kind of prior."""
    groups = {
        "global": "global",
        "tensor": "tensor",
        "mapping": {"100% in.side": "0.weight", "out": ["2.*", "0.bias"]},
    }
    pins = {"": {}, "zero": {"zero": True}, "mixing": {"zero": True, "zero_mixing": 0.8}}
    found = {}
    for mode in ("em", "gradient"):
        for group, pin, dtype in (
            *((group, "", torch.float32) for group in groups),
            ("global", "zero", torch.float32),
            ("global", "mixing", torch.float32),
            ("global", "", DOUBLE),
        ):
            net = network(6, 3).to(dtype)
            prior = MixturePrior(net, 2, groups=groups[group], mode=mode, **pins[pin])
            case = " ".join(filter(None, (mode, group, pin, str(dtype).removeprefix("torch."))))
            for key, t in prior.state_dict().items():
                found[f"{case}: {key}"] = [str(t.dtype).removeprefix("torch."), *t.shape]
    return found


def indices():
    """Paper -> the index of its figures, with all its tables, from the committed results."""
    mlps, lenets = nowlan1992.HERE / "results", ullrich2017.HERE / "results"
    return {
        "nowlan1992": nowlan1992._index(mlps, FIGURES / "nowlan1992"),
        "ullrich2017": ullrich2017._index(ullrich2017.Results(lenets), FIGURES / "ullrich2017"),
    }


def digests(texts):
    """Of the tables in each text, their number of lines and their SHA-256."""
    tables = {n: [row for row in text.splitlines() if row[:1] == "|"] for n, text in texts.items()}
    return {
        name: [len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest()]
        for name, rows in tables.items()
    }


PARTS = {
    "codec": make_codec,
    "runs": make_runs,
    "keys": lambda: write("keys", keys()),
    "tables": lambda: write("tables", digests(indices())),
    "drawings": lambda: write("drawings", drawings()),
}

if __name__ == "__main__":
    if not sys.argv[1:] or not set(sys.argv[1:]) <= set(PARTS):
        sys.exit(f"name the parts to make anew: {' '.join(PARTS)}")
    for part in sys.argv[1:]:
        PARTS[part]()
