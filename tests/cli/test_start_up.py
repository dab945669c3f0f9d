"""Questions that need no torch are answered without it; the guides are read in the terminal."""

import os
import re
import subprocess
import sys

import pytest

from swsmix import guides

HEAVY = ("torch", "numpy", "scipy", "matplotlib", "pyro", "numba")
ASKED = [
    ["--help"],
    ["--version"],
    ["guide"],
    ["guide", "training"],
    *([name, "--help"] for name in ("train", "inspect", "compress", "decompress", "reproduce")),
]
MAIN = "from swsmix.cli import main"


def loaded(prelude, arguments):
    """Which heavy libraries a call has imported when it ends."""
    code = f"""
import sys
{prelude}
sys.argv = ["swsmix", *{arguments!r}]
try:
    main()
finally:
    print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    return done.stderr.strip()


@pytest.mark.parametrize("arguments", ASKED, ids=" ".join)
def test_a_question_is_answered_without_torch(arguments):
    assert loaded(MAIN, arguments) == "[]"


def test_an_import_of_torch_is_seen():
    assert "torch" in loaded(f"import torch\n{MAIN}", ["--version"])


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "swsmix", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | environment,
    )  # fmt: skip


def test_guide_lists_every_guide_with_one_line():
    lines = run("guide").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*guides.names()]
    for line in lines:
        assert line.endswith(guides.summary(line.split()[0]))


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii"}])
def test_guide_prints_plain_markdown_into_a_pipe(environment):
    done = run("guide", "compression", **environment)
    assert done.returncode == 0 and done.stdout == guides.text("compression")


@pytest.mark.parametrize("width", [40, 200])
def test_guide_is_formatted_in_a_terminal(width):
    shown = run("guide", "cost", FORCE_COLOR="1", COLUMNS=str(width)).stdout
    assert "# Cost" not in shown and "```" not in shown and "figures/benchmark.png" not in shown
    assert "Know what the prior" in shown


@pytest.mark.parametrize("width", [40, 80])
def test_code_in_a_guide_keeps_its_lines_and_prose_is_wrapped(width):
    shown = run("guide", "inspection", FORCE_COLOR="1", COLUMNS=str(width)).stdout
    lines = re.sub("\x1b\\[[0-9;]*m", "", shown).split("\n")
    lines = [line.rstrip() for line in lines]
    blocks = re.findall(r"```\w*\n(.*?)```", guides.text("inspection"), re.DOTALL)
    code = [line for block in blocks for line in block.rstrip().split("\n")]
    assert max(map(len, code)) > 80 and set(code) <= set(lines)
    assert max(len(line) for line in lines if line not in code) <= width


def test_an_unknown_guide_is_an_error_that_lists_the_legal_ones():
    done = run("guide", "cooking")
    assert done.returncode == 1
    assert done.stderr.startswith("swsmix: no guide 'cooking'; the guides are training, ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "unneeded"),
    [(["--no-figures"], ["matplotlib", "scipy", "PIL"]), (["--html"], ["scipy", "swsmix.bayes"])],
    ids=["the table", "the page"],
)
def test_inspect_imports_nothing_that_it_does_not_need(tmp_path, more, unneeded):
    code = f"""
import sys, torch
from swsmix.cli import main
torch.save({{"w": torch.randn(20, 30)}}, "a.pt")
sys.argv = ["swsmix", "inspect", "a.pt", "--quiet", *{more!r}]
try:
    main()
finally:
    print([m for m in {unneeded!r} if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"
