"""The tool of tests/mutants.py at work: chosen mutants are killed, an equivalent one survives."""

import os
import subprocess
import sys

import mutants
import pytest

pytestmark = pytest.mark.hunt

TOY = """\
def clipped(x):
    '''At least 0 < x.'''
    return 0 if x < 0 else x
"""
TOY_TEST = """\
from toy import clipped

def test_clipped():
    assert [clipped(x) for x in (-2, -1, 0, 0.5, 2)] == [0, 0, 0, 0.5, 2]
"""


def hunt(*arguments, folder=mutants.ROOT):
    command = [sys.executable, str(mutants.ROOT / "tests" / "mutants.py"), *arguments]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        command, cwd=folder, env=alone, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TOY_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  hunt:\n  slow:\npythonpath = .\n")
    return tmp_path / "toy.py"


def test_an_equivalent_mutant_survives_and_is_named_and_the_others_die(toy):
    report = hunt("toy.py", "--tests", "test_toy.py", folder=toy.parent)
    found = mutants.mutants(toy)
    assert f"toy.py: {len(found) - 1} of {len(found)} killed" in report.stdout, report.stdout
    assert "SURVIVED\ntoy.py:3\n" in report.stdout
    assert "+     return 0 if (x <= 0) else x" in report.stdout
    assert report.returncode == 1
    assert toy.read_text() == TOY  # no file is edited


def test_texts_and_annotations_are_no_mutants(tmp_path):
    path = tmp_path / "texts.py"
    path.write_text(
        '"""1 < 2."""\n__all__ = ["a" "b"]\n\n\ndef f(x: "0 < 1"):\n    raise ValueError(1)\n'
    )
    assert [mutant.line for mutant in mutants.mutants(path)] == [6]  # the raise itself


def test_a_sample_is_spread_over_the_functions_and_fixed_by_its_seed():
    found = mutants.mutants(mutants.ROOT / "swsmix" / "schedule.py")
    chosen = mutants.sample(found, 12, seed=0)
    assert chosen == mutants.sample(found, 12, seed=0) != mutants.sample(found, 12, seed=1)
    assert {mutant.function for mutant in chosen} == {mutant.function for mutant in found}


def test_chosen_mutants_of_the_library_are_killed():
    report = hunt("chosen")
    count = len(mutants.CHOSEN)
    assert f"chosen: {count} of {count} killed" in report.stdout, report
    assert report.returncode == 0
