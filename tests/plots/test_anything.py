"""Every public figure draws what it is given, or says what is needed, got, and to be passed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import anything
import pytest

HOUSE = re.compile(r"\b(needs|must)\b.*\bgot\b.*[:;] \w", re.DOTALL)
PLAIN = {"prior", "network", "vector", "matrix", "array"}
TAKES = {
    "clusters": {*PLAIN, "prior of two mixtures", "prior of fifteen mixtures", "mixture"},
    "responsibilities": {*PLAIN, "prior of two mixtures", "prior of fifteen mixtures", "mixture"},
    "before_after": {*PLAIN, "prior of two mixtures", "prior of fifteen mixtures"},
    "hinton": {*PLAIN, "prior of two mixtures", "prior of fifteen mixtures", "state dict"}
    - {"vector"},
    "layers": {*PLAIN, "prior of two mixtures", "state dict", "dict of arrays"},
    "entropy": {*PLAIN, "prior of two mixtures", "mixture", "state dict", "dict of numbers"},
    "trajectories": {"history"},
    "collapse": {"history"},
    "loss_terms": {"history", "history of two groups"},
}


JUNK = {
    *("str", "path", "class", "set", "generator", "optimizer", "network without weights"),
    *("list of str", "list of None", "array of str", "array of objects", "dict of str", "complex"),
    *("meta", "empty history", "empty list", "nested checkpoint", "learned prior"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    command = [sys.executable, str(Path(anything.__file__))]
    where = tmp_path_factory.mktemp("anything")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=where)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_house_form(found):
    return found[0] in {"TypeError", "ValueError"} and HOUSE.search(found[1])


@pytest.mark.parametrize("name", anything.FIGURES)
def test_a_figure_of_anything_is_drawn_or_refused_in_the_houses_form(outcomes, name):
    assert outcomes[name].keys() == anything.GIVEN.keys()
    refused = {kind: found for kind, found in outcomes[name].items() if found != "drawn"}
    assert {kind: found for kind, found in refused.items() if not in_house_form(found)} == {}


@pytest.mark.parametrize("name", TAKES)
def test_a_figure_draws_what_a_user_has_at_hand(outcomes, name):
    refused = {kind: found for kind, found in outcomes[name].items() if found != "drawn"}
    assert not TAKES[name] & set(refused), refused


@pytest.mark.parametrize("name", anything.FIGURES)
def test_what_is_no_weights_is_never_drawn_as_if_it_were_not_there(outcomes, name):
    assert {kind for kind in JUNK if outcomes[name][kind] == "drawn"} == set()


def test_every_public_figure_is_tried():
    from swsmix import plots

    functions = {name for name in plots.__all__ if callable(getattr(plots, name))}
    assert functions == {name.split(",")[0] for name in anything.FIGURES} - {"rate_distortion"}
