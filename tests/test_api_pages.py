"""The API pages by the README's command: a page for each room that users call, no warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pdoc", reason="pdoc is not installed")
README = Path(__file__).parent.parent / "README.md"
ROOMS = "attach bayes codec compression em inspection plots prior problems trainers training"


def test_the_api_pages_are_made_without_a_warning(tmp_path):
    (command,) = re.findall(r"&& pdoc ([^`]*)`", README.read_text(encoding="utf-8"))
    command = " ".join(command.split())
    (names,) = re.findall(r"swsmix\.\{([\w,]*)\}", command)
    assert names.split(",") == ROOMS.split()
    modules = ["swsmix", *(f"swsmix.{name}" for name in names.split(","))]
    done = subprocess.run(
        [sys.executable, "-m", "pdoc", *command.split()[:3], *modules, "-o", tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    for name, word in {"prior": "MixturePrior", "plots": "clusters", "bayes": "Posterior"}.items():
        assert word in (tmp_path / "swsmix" / f"{name}.html").read_text(encoding="utf-8")
