"""The room's facade: documented names, imported at their first use."""

import subprocess
import sys

import pytest

import swsmix.compression


def test_every_name_is_there_and_documented():
    for name in swsmix.compression.__all__:
        assert getattr(swsmix.compression, name).__doc__
    with pytest.raises(AttributeError, match=r"no attribute 'snap'; it has \['Compressed'"):
        swsmix.compression.__getattr__("snap")


def test_snapping_loads_neither_the_codec_nor_the_training_loop():
    heavy = ["swsmix.codec", "swsmix.training", "scipy", "constriction", "rich", "matplotlib"]
    code = f"import sys, swsmix; swsmix.snap_; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
