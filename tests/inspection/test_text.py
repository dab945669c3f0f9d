"""Text for any terminal."""

import io
import re

import numpy as np
import pytest
import torch

from swsmix._labels import file_name, shorten
from swsmix.inspection import terminal
from swsmix.inspection.inspect import inspect
from swsmix.inspection.text import bars, histogram_text, percent, rebin
from swsmix.mixture import GaussianMixture


def test_text_bars_rise_with_the_counts_and_show_a_single_weight():
    counts = np.array([0, 1, 10, 100, 10**6, 10**6])
    (line,) = bars(counts)
    assert line[0] == " " and line[1] != " " and line[4] == line[5] == "█"
    assert list(line) == sorted(line, key=" ▁▂▃▄▅▆▇█".index)
    tall = bars(counts, rows=5, ascii_only=True)
    assert len(tall) == 5 and all(len(row) == 6 for row in tall) and "".join(tall).isascii()
    filled = np.array([[c != " " for c in row] for row in tall])
    assert (filled[1:] >= filled[:-1]).all()  # a column stands on the ground
    assert bars(np.zeros(3)) == ["   "]
    assert rebin(np.arange(10), 4).tolist() == [3, 12, 21, 9]


def test_text_centres_stand_below_their_weights():
    mixture = GaussianMixture([0.5, 0.5, 0.0], [0.15, 0.65, 0.9], [0.01, 0.01, 0.01])
    edges, counts = np.linspace(0, 1, 11), np.zeros(10)
    counts[[1, 6]] = 5
    lines = histogram_text(counts, edges, mixture, rows=2, ascii_only=True).plain.split("\n")
    assert lines == [" @    @", " @    @", " ^    ^   ", "0        1"]


def plain(inspection, width=120, **options):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    console.print(terminal(inspection, width=width, **options))
    return console.file.getvalue()


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_the_table_holds_all_that_was_counted_at_every_width(resnet, width, ascii_only):
    lines = plain(resnet, width, ascii_only=ascii_only).split("\n")
    assert max(map(len, lines)) <= width
    assert "".join(lines).isascii() == ascii_only
    start = 1 + max(i for i, line in enumerate(lines) if line.startswith("#"))
    lines = lines[: next(i for i, line in enumerate(lines) if "kurtosis" in line)]
    body = " ".join(line.strip() for line in lines[start:])
    body = " ".join(body.split("left out")[0].split())
    names = set()
    for layer, _ in resnet.layers:
        shares = " ".join(percent(share) for share in layer.shares)
        name = next(n for n in (layer.name, *shortened(layer.name)) if f" {n} " in f" {body}")
        names.add(name)
        after = body[body.index(name) :]
        # Random weights: no clusters, and no bits of them.
        verdict = "not clustered" if width <= 50 else " - - "
        found = [after.index(e) for e in (f"{layer.size:,}", verdict, "100.0 %", shares)]
        assert found == sorted(found) and found[-1] < 140
    assert len(names) == len(resnet.layers)
    # Each tensor on lines of its own.
    assert ("weights; not clustered;" in body) == (width <= 50)
    head = next((line for line in lines if line.startswith("tensor")), "")
    assert ("histogram" in head, "shape" in head) == (width >= 120, width == 200)


def shortened(name):
    return [shorten(name, length) for length in range(len(name), 5, -1)]


def test_a_histogram_and_the_shapes_come_in_as_the_terminal_widens(resnet):
    seen = [plain(resnet, width) for width in range(60, 130, 3)]
    for column in ("histogram", " shape", "shares, %"):
        there = [column in text for text in seen]
        assert there == sorted(there) and there[-1]


@pytest.mark.parametrize("groups", [4, 5])
def test_of_many_mixtures_the_largest_are_shown_and_all_tensors_are_in_one_table(tmp_path, groups):
    state = {f"w{i}": torch.linspace(-1, 1, 100 + (i == 0)).repeat(i + 1, 1) for i in range(groups)}
    torch.save(state, tmp_path / "a.pt")
    text = plain(inspect(tmp_path / "a.pt", per_tensor=True, num_components=3))
    shown = [i for i in range(groups) if f"mixture 'w{i}'" in text]
    assert shown == [*range(groups)][-4:]
    for table in (r"^tensor(?!.*kurtosis)", r"^tensor.*kurtosis"):
        assert len(re.findall(table, text, re.MULTILINE)) == (groups if groups == 4 else 1)
    assert all(re.search(rf"^w{i} ", text, re.MULTILINE) for i in range(groups))
    assert ("the 4 largest of 5 mixtures" in text) == (groups == 5)


def test_what_was_left_out_is_said_with_the_reason(run_folder):
    text = plain(inspect(run_folder, refit=True))
    assert "left out (1 dimension, fewer than 2): 0.bias, 2.bias" in text


def test_one_weight_is_no_plural(tmp_path):
    torch.save({"w": torch.ones(1, 1)}, tmp_path / "a.pt")
    for width in (40, 120):
        text = plain(inspect(tmp_path / "a.pt"), width)
        assert "1 weight;" in text and "1 weights" not in text and "1 clusters" not in text


EVIL = "\x1b[2J\x1b]0;owned\x07\u202ea\x00\ud800\n" + "b" * 300


def test_file_names_are_short_of_safe_characters_and_as_different_as_the_names():
    names = ["a/b", "a_b", "a:b", "a b", "A_b", "x" * 300, "x" * 301, "é", "\ud800", "../a", EVIL]
    found = [file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) for name in found)
    assert file_name("hinton-fc1.weight") == "hinton-fc1.weight"


def test_of_very_many_components_the_largest_are_shown_and_the_rest_are_counted(tmp_path):
    index = torch.arange(100).repeat_interleave(torch.arange(1, 101))
    torch.save({"w": index[: 10 * (len(index) // 10)].reshape(10, -1) / 7.0}, tmp_path / "a.pt")
    text = plain(inspect(tmp_path / "a.pt", num_components=100))
    rows = [line.split() for line in text.splitlines() if line.startswith("#")]
    assert len(rows) == 32
    owned = [int(row[4]) for row in rows]
    assert owned == [*range(69, 101)]
    assert re.search(r"68 more +2,346 +46.5 %", text)
    assert "at most 2" in text and "1 1 1" not in text
